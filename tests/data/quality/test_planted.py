"""One fault in a clean set: the checks before a training name it, and nothing else where nothing is."""

import numpy as np
import planted
import pytest
from planted import BOHR, GPA, HARTREE, KCAL, scaled, zero
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config.data import DataConfig
from equipot.data import load_datasets
from equipot.data.quality.check import check_sets
from equipot.data.sources import read_sources
from equipot.errors import DataError

LABELS = ("energy", "forces", "stress")
_CRYSTALS, _MOLECULES = planted.crystals(), planted.molecules()


@pytest.fixture(params=["crystals", "molecules"])
def clean(request):
    found = _CRYSTALS if request.param == "crystals" else _MOLECULES
    return [atoms.copy() for atoms in found]


@pytest.fixture
def crystals():
    return [atoms.copy() for atoms in _CRYSTALS]


@pytest.fixture
def findings(tmp_path):
    """What the checks say before a training on these frames: {check: (severity, message)}."""

    def check(frames, trained=LABELS):
        path = planted.write(tmp_path / "a.xyz", frames)
        pool = read_sources(DataConfig(train=path).sources("train"))
        none = pool.take(np.arange(0))
        drawn = {"training": pool, "validation": none, "test": none}
        return {f.check: (f.severity, f.message) for f in check_sets(pool, {}, drawn, trained)}

    return check


def test_nothing_in_clean_sets(clean, findings):
    assert findings(clean) == {}
    for size in (10, 20, 45):
        assert findings(clean[:size]) == {}
        assert findings(clean[-size:]) == {}


E_F = "forces and energies"
FAULTS = {
    "sign of forces": (scaled("forces", -1), "error", E_F, "wrong sign"),
    "unit of forces": (scaled("forces", BOHR / HARTREE), "error", E_F, "data.units.forces: Hartree/Bohr"),
    "unit of energy": (scaled("energy", 1 / KCAL), "error", E_F, "data.units.energy: kcal/mol"),
    "half forces": (scaled("forces", 0.5), "error", E_F, "half as large"),
    "unit of length": (planted.lengths_in_bohr, "error", E_F, "data.units.length: Bohr"),
    "energies per atom": (planted.energies_per_atom, "error", E_F, "per atom"),
    "zero energies": (zero("energy"), "error", "zero energy", "exactly zero"),
    "zero forces": (zero("forces"), "error", "zero forces", "exactly zero"),
    "some of opposite sign": (planted.some_opposite, "error", "forces of single frames", "other way"),
    "some halved": (planted.some_halved, "warning", "forces of single frames", "by a factor"),
    "permuted forces": (planted.permuted_forces, "error", E_F, "do not change as the forces say"),
    "some permuted": (planted.some_permuted_forces, "warning", "forces of single frames", "do not fit"),
    "duplicates": (planted.duplicated, "warning", "duplicates", "7 frames repeat"),
    "contradictions": (planted.contradicting, "error", "contradiction", "3 structures with different"),
    "another level": (planted.another_level, "warning", "labels of single frames", "contradict"),
    "copied forces": (planted.copied_forces, "error", "copied labels", "frames 13, 16"),
    "energy outlier": (planted.energy_outlier, "warning", "energy outliers", "frame 17"),
    "force outlier": (planted.force_outlier, "warning", "large forces", "400 eV/Å"),
    "short contact": (planted.short_contact, "warning", "close atoms", "0.550 Å"),
    "single precision": (planted.single_precision, "warning", "precision", "single precision"),
    "constrained atoms": (planted.constrained, "error", "net force", "constraints"),
    "shifted energies": (planted.shifted_energies, "error", E_F, "do not change as the forces say"),
    "shifted forces": (planted.shifted_forces, "error", "shifted labels", "frame after"),
    "shifted labels": (planted.shifted_labels, "error", "shifted labels", "frame after"),
}
OF_CRYSTALS = {
    "stress in GPa": (scaled("stress", 1 / GPA), "error", "stress and energies", "data.units.stress: GPa"),
    "VASP's stress": (
        scaled("stress", -10 / GPA),
        "error",
        "stress and energies",
        "data.units.stress: -kbar",
    ),
    "sign of stress": (scaled("stress", -1), "error", "stress and energies", "opposite sign"),
    "shear columns": (planted.shear_order, "error", "stress and energies", "xy xz yz, not yz xz xy"),
    "virial": (planted.virial_as_stress, "error", "stress and energies", "data.labels.virial"),
    "zero stress": (zero("stress"), "error", "zero stress", "weight or, of a virial, config_virials_weight)"),
    "swapped species": (planted.swapped_species, "warning", "energy outliers", "10 frames"),
    "transposed cell": (planted.transposed_cell, "error", "cells", "lattice transposed"),
    "dropped cell": (planted.dropped_cell, "error", "torque", "a cell or pbc that was lost"),
    "some dropped": (planted.some_dropped_cells, "warning", "cells", "without periodic directions"),
    "dropped pbc": (planted.dropped_pbc, "error", "cells", "pbc T T T"),
}


def named(plant, frames, findings, severity, check, words):
    found = findings(plant(frames) or frames)
    assert check in found, found
    assert found[check][0] == severity
    assert words.lower() in found[check][1].lower()


@pytest.mark.parametrize("fault", FAULTS)
def test_fault(clean, findings, fault):
    plant, *expected = FAULTS[fault]
    named(plant, clean, findings, *expected)


@pytest.mark.parametrize("fault", OF_CRYSTALS)
def test_fault_of_crystals(crystals, findings, fault):
    plant, *expected = OF_CRYSTALS[fault]
    named(plant, crystals, findings, *expected)


@pytest.mark.parametrize("fault", ["sign of forces", "unit of forces", "half forces", "energies per atom"])
def test_fault_where_no_two_frames_have_the_same_cell(findings, fault):
    frames = planted.cells_of_their_own()
    assert findings(frames) == {}
    plant, *expected = FAULTS[fault]
    named(plant, frames, findings, *expected)


def test_lengths_in_bohr_where_no_two_frames_have_the_same_cell(findings):
    frames = planted.cells_of_their_own()
    planted.lengths_in_bohr(frames)
    found = findings(frames)
    assert found[E_F][0] == "error" and "Energies change by about 0.5" in found[E_F][1]


@pytest.mark.parametrize(("sign", "key"), [(1, "data.units.virial: -eV"), (-1, "virial instead of stress ")])
def test_sign_of_a_virial_where_no_two_frames_have_the_same_cell(findings, sign, key):
    frames = planted.cells_of_their_own()
    for atoms in frames:
        atoms.info["stress"] = sign * atoms.get_volume() * atoms.info["stress"]
    assert key in findings(frames)["stress and forces"][1]


def test_forces_that_are_zero_by_symmetry(findings):
    assert findings(planted.equation_of_state()) == {}


def test_zeros_among_energies_relative_to_something(findings):
    """At most one frame of a composition can have exactly the energy that the others are relative to."""
    frames = planted.cells_of_their_own()
    lowest = min(atoms.info["energy"] for atoms in frames)
    for atoms in frames:
        atoms.info["energy"] -= lowest
    assert findings(frames).get("zero energy", ("warning",))[0] == "warning"
    zero("energy")(frames)
    assert findings(frames)["zero energy"][0] == "error"


def test_labels_that_are_not_trained_stop_nothing(crystals, findings):
    scaled("stress", 1 / GPA)(crystals)
    assert findings(crystals, ("energy", "forces"))["stress and energies"][0] == "warning"


@pytest.mark.parametrize("cached", [False, True])
def test_loading_stops_warns_or_keeps_silent(crystals, tmp_path, caplog, cached):
    scaled("forces", -1)(crystals)
    data = {"train": planted.write(tmp_path / "a.xyz", crystals), "cache": tmp_path / "c" if cached else None}
    with pytest.raises(DataError, match=r"(?s)forces and energies: .*wrong sign.*data\.checks: warn"):
        load_datasets(DataConfig(**data), 4.0, trained=LABELS)
    loaded = load_datasets(DataConfig(**data, checks="warn"), 4.0, trained=LABELS)
    assert "Data check, forces and energies: The forces have the wrong sign" in caplog.text
    caplog.clear()
    load_datasets(DataConfig(**data), 4.0, loaded.split, LABELS)  # resumed: they were checked at the start
    load_datasets(DataConfig(**data, checks="off"), 4.0, trained=LABELS)
    assert "Data check" not in caplog.text


def test_frames_of_the_test_set_that_are_trained_on(crystals, tmp_path, caplog):
    train = planted.write(tmp_path / "a.xyz", crystals)
    test = planted.write(tmp_path / "b.xyz", crystals[10:14])
    load_datasets(DataConfig(train=train, test=test, validation=1), 4.0, trained=LABELS)
    assert (
        "Data check, shared frames: " in caplog.text and "test frames are also in the training" in caplog.text
    )


YAML = """
data: {train: a.xyz, validation: 5}
model: {type: nequip, l_max: 1, layers: 1, channels: 2, num_bessel: 3, radial_hidden: [4], cutoff: 4.0}
training: {epochs: 1, batch_size: 5, loss: {stress: 1.0}}
run: {device: cpu, directory: RUN}
"""


@pytest.mark.parametrize("fault", ["sign of forces", "zero energies", "stress in GPa"])
def test_training_from_the_command_line_stops(crystals, tmp_path, fault):
    plant, _, check, words = (FAULTS | OF_CRYSTALS)[fault]
    plant(crystals)
    planted.write(tmp_path / "a.xyz", crystals)
    (tmp_path / "c.yaml").write_text(YAML.replace("RUN", str(tmp_path / "run")))
    result = CliRunner().invoke(app, ["train", str(tmp_path / "c.yaml")])
    assert isinstance(result.exception, DataError)
    assert check in str(result.exception) and words in str(result.exception)
    assert not (tmp_path / "run").exists()


# What is named in published sets, and is there; see docs/data.md.
PUBLISHED = {
    "3bpa/train_300K.xyz": set(),
    "3bpa/train_mixedT.xyz": set(),
    "dipeptides_spice/train.xyz.gz": set(),
    "mlearn_Cu/train.xyz.gz": {"stress and energies"},  # 2.5 GPa of Pulay stress
    "mlearn_Si/train.xyz.gz": set(),
    "phonons_ref/Si_fc3_PBE.xyz.gz": set(),
    "phonons_ref/Si111_rd.xyz.gz": set(),
    "phonons_ref/NaCl_rd.xyz.gz": set(),
    "phonons_ref/MgO_rd.xyz.gz": set(),
    "response/BaTiO3_train.xyz.gz": set(),
    "response/SiO2_train.xyz.gz": set(),
    "snap_Ta/all.xyz.gz": {"energy outliers", "pressure", "close atoms", "stress and energies"},
    "water_pbe0/train.xyz.gz": {"net force"},
    "water_pbe0/dplr_virial_wannier.xyz.gz": set(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets(shared_data, name):
    labels = {"energy": None} if "Si111" in name else {}
    config = DataConfig(train=str(shared_data / name), labels=labels)
    pool = read_sources(config.sources("train"))
    none = pool.take(np.arange(0))
    found = check_sets(pool, {}, {"training": pool, "validation": none, "test": none}, LABELS)
    assert {finding.check for finding in found} == PUBLISHED[name]
    assert {finding.severity for finding in found} <= {"warning"}
