"""The data section of a configuration, from files to data sets."""

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.stress import full_3x3_to_voigt_6_stress
from ase.units import GPa

from equipot.config.data import DataConfig
from equipot.data import Split, load_datasets
from equipot.errors import DataError, UnknownSpeciesError

LABELS = {"energy": "my_energy", "forces": "my_forces"}


def config(train, **fields):
    return DataConfig(train=train if isinstance(train, list) else [str(train)], labels=LABELS, **fields)


def isolated_atoms():
    return [ase.Atoms(symbol, info={"my_energy": energy}) for symbol, energy in (("H", -3.0), ("O", -7.0))]


def ids(dataset):
    return {(frame.file, frame.index) for frame in dataset.frames}


def test_draws_validation_from_training_files(water, write):
    data = load_datasets(config(write(water), validation=3, train_frames=5), 3.0)
    assert (len(data.train), len(data.validation), data.test) == (5, 3, None)
    assert not ids(data.train) & ids(data.validation)
    assert ids(data.train) == set(data.split.train)
    assert data.species == data.train.species == data.validation.species == ["H", "O"]
    assert data.train.cutoff == 3.0
    assert data.statistics.num_frames == 5


def test_given_validation_and_test_files(water, write):
    train, validation, test = write(water[:6], "a.xyz"), write(water[6:8], "b.xyz"), write(water[8:], "c.xyz")
    data = load_datasets(config(train, validation=[str(validation)], test=[str(test)]), 3.0)
    assert [len(d) for d in (data.train, data.validation, data.test)] == [6, 2, 2]
    assert data.test.frames[0].file == str(test)


def test_isolated_atoms_are_reference_energies_and_not_training_frames(water, write):
    data = load_datasets(config(write([*isolated_atoms(), *water]), validation=0.2), 3.0)
    assert (len(data.train), len(data.validation)) == (8, 2)
    assert data.statistics.atomic_energies == [-3.0, -7.0]
    assert not any(frame.is_isolated_atom for frame in data.train.frames + data.validation.frames)


def test_only_isolated_atoms(write):
    path = write(isolated_atoms())
    with pytest.raises(DataError, match="all training frames are isolated atoms"):
        load_datasets(DataConfig(train=[str(path)], labels={"energy": "my_energy", "forces": None}), 3.0)


def test_units_apply_to_files_and_to_given_energies(water, write):
    path = write(water)
    given = {"H": -100.0, "O": -200.0}
    plain = load_datasets(config(path, atomic_energies=given), 3.0)
    scaled = load_datasets(config(path, atomic_energies=given, units={"energy": "meV"}), 3.0)
    for name in ("atomic_energies", "energy_residual_rms", "force_rms"):
        # Tolerance: rounding of one product
        expected = 1e-3 * np.array(getattr(plain.statistics, name))
        np.testing.assert_allclose(getattr(scaled.statistics, name), expected, rtol=1e-12)


def test_saved_split_is_used_again(water, write, tmp_path):
    path = write(water)
    first = load_datasets(config(path, validation=3), 3.0)
    first.split.save(tmp_path / "split.json")
    again = load_datasets(config(path, validation=3, seed=99), 3.0, Split.load(tmp_path / "split.json"))
    assert ids(again.train) == ids(first.train)
    assert ids(again.validation) == ids(first.validation)
    write(water[::-1])
    with pytest.raises(DataError, match="changed since the split was drawn"):
        load_datasets(config(path, validation=3), 3.0, first.split)


def test_same_file_for_training_and_validation(water, write):
    path = str(write(water))
    with pytest.raises(DataError, match=r"is in both the train and the validation set"):
        load_datasets(config(path, validation=[path]), 3.0)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_structures_in_two_sets_are_reported(water, write, caplog, name):
    others = {"validation": [str(write(water[8:], "c.xyz"))], name: [str(write(water[4:8], "b.xyz"))]}
    labels = ["energy", "forces"]  # which are random
    load_datasets(config(write(water[:6], "a.xyz"), **others, checks="warn"), 3.0, trained=labels)
    assert f"2 of 4 {name} frames are also in the training set" in caplog.text


def test_validation_with_a_species_that_training_lacks(water, write):
    other = ase.Atoms("NH", positions=[[0, 0, 0], [0, 0, 1.0]], info={"my_energy": 0.0})
    other.arrays["my_forces"] = np.zeros((2, 3))
    train, validation = write(water, "a.xyz"), write([other], "b.xyz")
    with pytest.raises(
        UnknownSpeciesError, match=r"b.xyz, frame 0 .* contains N, but the known species are H, O"
    ):
        load_datasets(config(train, validation=[str(validation)]), 3.0)


def test_species_order_of_the_configuration(water, write):
    data = load_datasets(config(write(water), species=["O", "H"]), 3.0)
    assert data.species == data.statistics.species == ["O", "H"]
    assert data.statistics.atoms_per_species == [9, 18]


def test_listed_species_that_no_frame_contains(water, write):
    with pytest.raises(DataError, match="No training frame contains C"):
        load_datasets(config(write(water), species=["H", "C", "O"]), 3.0)


@pytest.mark.parametrize("cached", [False, True])
def test_weights_of_groups_multiply_those_of_frames_and_files(water, write, tmp_path, cached):
    """From memory and from a store; validation frames are weighted alike."""
    groups = ["bulk", "surface", None] * 4
    for atoms, group in zip(water, groups, strict=False):
        atoms.info |= {"config_type": group} if group else {}
    water[1].info["config_weight"] = 3.0
    path = write(water)
    data = load_datasets(
        DataConfig(
            train=[{"path": path, "weight": 2.0}],
            validation=4,
            labels=LABELS,
            group_weights={"surface": 5.0, "bulk": 0.5},
            cache=tmp_path / "cache" if cached else None,
        ),
        3.0,
    )
    factors = {"bulk": 0.5, "surface": 5.0, None: 1.0}
    seen = 0
    for dataset, split in ((data.train, data.split.train), (data.validation, data.split.validation)):
        for i, (_, number) in enumerate(split):
            expected = 2.0 * factors[groups[number]] * (3.0 if number == 1 else 1.0)
            weight = dataset[i].labels.weight
            assert (1.0 if weight is None else weight.item()) == expected
            assert dataset.columns.weight[i] == expected  # what is known of a frame without reading it
            assert dataset.config_types[i] == groups[number]
            seen += 1
    assert seen == len(water)


@pytest.mark.parametrize(
    "changed",
    [
        {"units": {"energy": "kcal/mol"}},
        {"units": {"length": "Bohr"}},
        {"labels": {"energy": "other_energy", "forces": "my_forces"}},
        {"labels": {"energy": "my_energy", "forces": "other_forces"}},
        {"labels": LABELS | {"weight": "other_weight"}},
    ],
    ids=lambda changed: "-".join(next(iter(changed.values()))),
)
def test_cache_made_with_other_settings_is_not_used(water, write, tmp_path, changed):
    for i, atoms in enumerate(water):
        atoms.info |= {"other_energy": -15.0 - 0.2 * i, "config_weight": 2.0, "other_weight": 3.0}
        atoms.arrays["other_forces"] = 1.5 * atoms.arrays["my_forces"]
    settings = {"train": [str(write(water))], "validation": 3, "labels": LABELS}
    load_datasets(DataConfig(**settings, cache=tmp_path / "cache"), 3.0)
    expected = load_datasets(DataConfig(**settings | changed), 3.0)
    found = load_datasets(DataConfig(**settings | changed, cache=tmp_path / "cache"), 3.0)
    assert found.statistics == expected.statistics
    for one, other in zip(expected.train.frames, found.train.frames, strict=True):
        assert (other.where, other.energy, other.weight) == (one.where, one.energy, one.weight)
        for name in ("positions", "forces"):
            assert np.array_equal(getattr(other, name), getattr(one, name)), name


def test_cache_of_a_file_that_was_moved_names_the_new_place(water, write, tmp_path):
    path = write(water)
    settings = {"labels": LABELS, "validation": 3, "cache": tmp_path / "cache"}
    load_datasets(DataConfig(train=[str(path)], **settings), 3.0)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    data = load_datasets(DataConfig(train=[str(moved)], **settings), 3.0)
    assert {file for file, _ in data.split.train} == {str(moved)}


def test_weight_of_an_unknown_group_is_refused(water, write):
    water[0].info["config_type"] = "surface"
    given = config(write(water), group_weights={"surfce": 2.0})
    with pytest.raises(DataError, match=r"names surfce, but .*; found: surface \(1 frame\)\."):
        load_datasets(given, 3.0)


@pytest.fixture
def copper(tmp_path):
    """Function (name, change, **data) -> data sets of eight crystals, each changed before it is written."""

    def read(name, change=lambda i, atoms, stress: None, **data):
        structures = []
        for i in range(8):
            atoms = bulk("Cu", cubic=True) * (1, 1, 1)
            atoms.set_cell(atoms.cell * (0.97 + 0.01 * i), scale_atoms=True)
            atoms.rattle(0.1, seed=i)
            atoms.calc = EMT()
            stress = atoms.get_stress(voigt=False)
            atoms.info |= {"E": atoms.get_potential_energy(), "S": stress.ravel()}
            atoms.arrays["F"] = atoms.get_forces()
            atoms.calc = None
            change(i, atoms, stress)
            structures.append(atoms)
        ase.io.write(tmp_path / name, structures, format="extxyz")
        labels = {"energy": "E", "forces": "F", "stress": "S"} | data.pop("labels", {})
        return load_datasets(
            DataConfig(train=[str(tmp_path / name)], validation=2, labels=labels, **data), 4.0
        )

    return read


def as_virial(sign):
    def change(i, atoms, stress):
        atoms.info["V"] = sign * atoms.get_volume() * atoms.info.pop("S")

    return change


def as_vasp_writes_it(i, atoms, stress):
    atoms.info["S"] = -10 * full_3x3_to_voigt_6_stress(stress) / GPa


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (as_virial(-1), {"labels": {"stress": None, "virial": "V"}}),
        (as_virial(-1), {"labels": {"virial": "V"}}),
        (as_virial(1), {"labels": {"virial": "V"}, "units": {"virial": "-eV"}}),
        (as_vasp_writes_it, {"units": {"stress": "-kbar"}}),
    ],
)
def test_a_stress_in_another_form_makes_the_same_data_set(copper, change, data):
    expected, found = copper("clean.xyz"), copper("other.xyz", change, **data)
    assert len(found.train) == 6
    for one, two in zip(expected.train, found.train, strict=True):
        torch.testing.assert_close(two.labels.stress.value, one.labels.stress.value, rtol=1e-6, atol=1e-10)
        assert torch.equal(two.labels.energy.value, one.labels.energy.value)
    assert found.statistics == expected.statistics


def without(value, **weights):
    """Of three frames one lacks its energy, forces or stress: there is ``value``, if any."""

    def change(i, atoms, stress):
        where, name = ((atoms.info, "E"), (atoms.arrays, "F"), (atoms.info, "S"))[i % 3]
        old = where.pop(name)
        if value is not None:
            where[name] = np.full_like(old, value) if np.ndim(old) else value
        if weights:
            atoms.info[list(weights)[i % 3]] = weights[list(weights)[i % 3]]

    return change


@pytest.mark.parametrize(
    ("change", "data"),
    [
        (without(0.0, config_energy_weight=0, config_forces_weight=0, config_stress_weight=0), {}),
        (without(np.nan), {"missing": "nan"}),
    ],
)
def test_placeholders_are_as_if_there_were_no_label(copper, change, data):
    expected, found = copper("clean.xyz", without(None)), copper("other.xyz", change, **data)
    assert found.statistics == expected.statistics and found.statistics.num_labels["energy"] < 6
    for one, two in zip(expected.train, found.train, strict=True):
        assert one.labels.values.keys() == two.labels.values.keys()
        assert all(
            torch.equal(label.value, two.labels.values[n].value) for n, label in one.labels.values.items()
        )
        assert all(label.weight is None for label in two.labels.values.values())
