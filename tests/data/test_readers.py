"""Files: formats, patterns, labels by name, and the messages when something is wrong."""

import gzip
import logging

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equipot.config.data import DataConfig, LabelsConfig, UnitsConfig
from equipot.data import expand_paths, read_frames
from equipot.data.readers import named_labels, read_source
from equipot.errors import DataError

MY_LABELS = LabelsConfig(energy="my_energy", forces="my_forces")


def failing(*args, **kwargs):
    with pytest.raises(DataError) as error:
        read_frames(*args, **kwargs)
    return str(error.value)


@pytest.mark.parametrize("name", ["frames.xyz", "frames.extxyz", "frames.xyz.gz", "frames@1.xyz"])
def test_extended_xyz(water, write, name):
    path = write(water, name)
    frames = read_frames(path, MY_LABELS)
    assert [frame.index for frame in frames] == list(range(10))
    assert {frame.file for frame in frames} == {str(path)}
    # extxyz is written with 8 decimals
    np.testing.assert_allclose(frames[3].positions, water[3].positions, atol=1e-8)
    np.testing.assert_allclose(frames[3].forces, water[3].arrays["my_forces"], atol=1e-8)
    np.testing.assert_allclose([f.energy for f in frames], [a.info["my_energy"] for a in water], atol=1e-8)


@pytest.mark.parametrize("name", ["frames.xyz", "frames.traj", "frames.json", "frames.db"])
def test_labels_under_ase_names_in_other_formats(water, write, name):
    for atoms in water:
        energy, forces = atoms.info.pop("my_energy"), atoms.arrays.pop("my_forces")
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    frames = read_frames(write(water, name))
    assert len(frames) == 10
    assert frames[4].energy == pytest.approx(-14.4, abs=1e-8)  # 8 decimals in extxyz
    np.testing.assert_allclose(frames[4].forces, water[4].calc.results["forces"], atol=1e-8)


def test_units_are_applied_once(water, write):
    frames = read_frames(write(water), MY_LABELS, UnitsConfig(energy="kcal/mol"))
    assert frames[0].energy == pytest.approx(-14.0 * 0.043364104, rel=1e-7)  # 8 digits of the constant


def test_several_files_and_patterns(water, write, tmp_path):
    first, second = write(water[:4], "a_1.xyz"), write(water[4:], "a_2.xyz")
    by_list = read_frames([second, str(first)], MY_LABELS)
    assert [(f.file, f.index) for f in by_list[:7]] == [(str(second), i) for i in range(6)] + [
        (str(first), 0)
    ]
    write(water, ".a_hidden.xyz")
    assert expand_paths(str(tmp_path / "a_*.xyz")) == [first, second]


def test_missing_file_names_the_nearest(water, write, tmp_path):
    path = write(water, "train.xyz")
    message = failing(tmp_path / "trian.xyz")
    assert message == f"There is no file {tmp_path / 'trian.xyz'}. Did you mean {path}?"


def test_missing_folder(tmp_path):
    assert failing(tmp_path / "no" / "a.xyz").endswith(f"the folder {tmp_path / 'no'} does not exist.")


def test_pattern_without_match(tmp_path):
    assert failing(tmp_path / "*.xyz") == f"No file matches the pattern {tmp_path / '*.xyz'}."


def test_folder_instead_of_file(tmp_path):
    assert "is not a file" in failing(tmp_path)


def test_device_instead_of_file():
    assert failing("/dev/null").startswith("/dev/null is a pipe or a device.")


def test_no_file_given():
    assert failing([]) == "No structure file is given."


def test_file_listed_twice(water, write, tmp_path):
    path = write(water)
    assert (
        failing([path, tmp_path / "*.xyz"])
        == f"{path} is listed more than once; its frames would count twice."
    )


def test_empty_file(tmp_path):
    (tmp_path / "empty.xyz").touch()
    assert failing(tmp_path / "empty.xyz") == f"{tmp_path / 'empty.xyz'} is empty."


def test_file_without_frames(tmp_path):
    (tmp_path / "blank.xyz").write_text("\n\n")
    message = f"{tmp_path / 'blank.xyz'} contains no frames (read as extended XYZ)."
    assert failing(tmp_path / "blank.xyz") == message


def test_unknown_format(tmp_path):
    (tmp_path / "data.what").write_text("something else\n")
    message = failing(tmp_path / "data.what")
    assert message.startswith(str(tmp_path / "data.what"))
    assert "does not recognise the file format" in message


def test_truncated_file(water, write):
    path = write(water)
    path.write_text(path.read_text()[:-150])
    message = failing(path, MY_LABELS)
    assert message.startswith(f"{path}")
    assert "frame 9 (the first is 0) begins in line 46" in message
    assert "9 frames before it are complete" in message and "truncated" in message


def test_truncated_in_the_middle_of_a_line(water, write):
    path = write(water)
    path.write_text(path.read_text()[:-25])
    message = failing(path, MY_LABELS)
    assert message.startswith(f"{path}, line 50: frame 9 (the first is 0) begins in line 46")
    assert "should have 7 columns, but atom 2 has" in message


def test_line_missing_inside_the_file(water, write):
    path = write(water)
    lines = path.read_text().splitlines()
    del lines[7]  # an atom of frame 1: the next count is taken for an atom
    path.write_text("\n".join(lines) + "\n")
    message = failing(path, MY_LABELS)
    assert message.startswith(f"{path}, line 10: frame 1")
    assert "1 frame before it is complete" in message


def test_no_atom_count_where_a_frame_should_begin(tmp_path):
    path = tmp_path / "plain.xyz"
    path.write_text("1\n\nH 0 0 0\nH 0 0 1\n")
    assert f"{path}, line 4: expected the number of atoms of the next frame, found 'H 0 0 1'" in failing(path)


def test_cell_vector_lines(tmp_path):
    path = tmp_path / "vec.xyz"
    path.write_text("1\n\nH 0 0 0\nVEC1 5 0 0\nVEC2 0 5 0\nVEC3 0 0 5\n" * 2)
    assert [frame.pbc.all() for frame in read_frames(path, required=())] == [True, True]


def test_truncated_gzip(water, write):
    path = write(water, "frames.xyz.gz")
    path.write_bytes(path.read_bytes()[:-200])
    message = failing(path, MY_LABELS)
    assert message.startswith(f"{path} cannot be read") and "truncated" in message


def test_garbage_in_a_frame(water, write):
    path = write(water)
    lines = path.read_text().splitlines()
    lines[5 * 4 + 2] = "O 0.0 zero 0.0 0 0 0"
    path.write_text("\n".join(lines) + "\n")
    assert failing(path, MY_LABELS).startswith(f"{path}, frame 4 (the first is 0)")


def test_blank_line_between_frames_does_not_lose_the_rest(water, write):
    path = write(water)
    lines = path.read_text().splitlines()
    lines.insert(15, "")
    path.write_text("\n".join(lines) + "\n")
    message = failing(path, MY_LABELS)
    assert "line 16, after frame 2, is blank, but text follows in line 17" in message


def test_blank_lines_at_the_end_and_blank_comments_are_fine(tmp_path):
    path = tmp_path / "plain.xyz"
    path.write_text("1\n\nH 0 0 0\n1\n\nH 0 0 1\n\n\n")
    assert len(read_frames(path, required=())) == 2


def test_unusable_frame_is_named(water, write):
    water[6].arrays["my_forces"][1, 1] = np.nan
    path = write(water)
    message = failing(path, MY_LABELS)
    assert message.startswith(f"{path}, frame 6 (the first is 0): 'my_forces' is nan of atom 1")


@pytest.mark.parametrize(
    ("labels", "kind", "candidates", "nearest"),
    [
        (LabelsConfig(forces="my_forces"), "energy", "my_energy", "my_energy"),
        (
            LabelsConfig(energy="my_energy"),
            "forces",
            "my_forces; of fitting shape only: velocity",
            "my_forces",
        ),
        (LabelsConfig(energy="my_energy", forces="my_forces", stress="virial"), "stress", "none", None),
    ],
)
def test_label_in_no_frame(water, write, labels, kind, candidates, nearest):
    for atoms in water:
        atoms.arrays["velocity"] = np.zeros((3, 3))
    path = write(water)
    message = failing(path, labels)
    assert f"{path}: no frame has a label '{getattr(labels, kind)}' for the {kind}." in message
    assert f": {candidates}. " in message
    assert (f"Did you mean '{nearest}'?" in message) == (nearest is not None)
    assert f"data.labels.{kind}" in message


def test_default_label_that_is_not_required(water, write, caplog):
    path = write(water)
    with caplog.at_level(logging.INFO, logger="equipot"):
        frames = read_frames(path, MY_LABELS)
    assert all(frame.stress is None for frame in frames)
    assert caplog.messages == []  # a molecule cannot have a stress
    for atoms in water:
        atoms.set_cell([9.0, 9.0, 9.0])
        atoms.pbc = True
    path = write(water)
    with caplog.at_level(logging.INFO, logger="equipot"):
        read_frames(path, MY_LABELS)
    assert caplog.messages == [f"{path}: no frame has a label 'stress', so no stress is read."]
    assert len(read_frames(path, required=())) == 10  # unlabelled structures for prediction


def test_names_in_the_file_are_listed_where_none_is_required(water, write, caplog):
    path = write(water)
    with caplog.at_level(logging.INFO, logger="equipot"):
        read_frames(path, LabelsConfig(energy="my_energy"), required=(), advice="Use --{kind}-key.")
    assert caplog.messages == [
        f"{path}: no frame has a label 'forces', so no forces are read. Names with one vector per atom "
        "there: my_forces. Did you mean 'my_forces'? Use --forces-key."
    ]


def test_no_label_at_all(water, write):
    message = failing(write(water), required=(), need_any=True, advice="Use --{kind}-key.")
    assert "my_energy" in message and "my_forces" in message
    assert "Use --energy-key." in message and "data.labels" not in message


def test_label_in_some_frames(water, write, caplog):
    for atoms in water[::2]:
        del atoms.arrays["my_forces"]
    path = write(water)
    frames = read_frames(path, LabelsConfig(energy="my_energy", forces="my_forces", stress=None))
    assert [frame.forces is None for frame in frames] == [True, False] * 5
    assert caplog.messages == [
        f"{path}: 5 of 10 frames have no forces label 'my_forces' (the first is frame 0, counted from 0); "
        "their other labels are used."
    ]


def test_isolated_atoms_are_not_counted_as_lacking_forces(water, write, caplog):
    path = write([*water, ase.Atoms("H", info={"my_energy": -13.6})])
    frames = read_frames(path, LabelsConfig(energy="my_energy", forces="my_forces", stress=None))
    assert frames[-1].is_isolated_atom
    assert caplog.messages == []


def test_gz_of_another_compressor(water, write, tmp_path):
    plain = write(water)
    packed = tmp_path / "packed.xyz.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert len(read_frames(packed, MY_LABELS)) == 10


def test_a_part_of_a_file(tmp_path):
    """Which is chosen by FILE@N for dynamics, and not here."""
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    for frames in ("3", "0:100"):
        with pytest.raises(DataError, match=rf"use a part of .*a\.xyz \('{frames}'\), write it"):
            expand_paths(tmp_path / f"a.xyz@{frames}")


@pytest.fixture
def slab_and_crystal(crystals):
    """Four labelled structures; the first is periodic in two directions only."""
    structures = crystals("Si4", "NaCl", "OH2", "Si2")
    for atoms in structures:
        atoms.info["energy"], atoms.info["stress"] = atoms.get_potential_energy(), atoms.get_stress()
        atoms.arrays["forces"] = atoms.get_forces()
        atoms.calc = None
    structures[0].pbc = [True, True, False]
    return structures


def test_a_virial_is_offered_as_a_virial_and_never_as_a_stress(slab_and_crystal, write, caplog):
    caplog.set_level(logging.INFO, logger="equipot")
    for atoms in slab_and_crystal:
        atoms.info["REF_virials"] = -atoms.get_volume() * atoms.info.pop("stress")
        atoms.info["quadrupole"] = np.arange(6.0)
    path = write(slab_and_crystal)
    read_frames(path)
    (message,) = caplog.messages
    assert (
        "6 or 9 numbers there: of fitting shape only: quadrupole. What means a virial: REF_virials."
        in message
    )
    assert "Set data.labels.virial" in message and "data.labels.stress" not in message
    assert "Did you mean" not in message
    frames = read_frames(path, LabelsConfig(virial="REF_virials"))
    assert [frame.stress is None for frame in frames] == [True, False, False, False]
    assert "no frame has a label 'stress' or 'virial' for the stress" in failing(
        path, LabelsConfig(virial="virial")
    )


def test_stress_of_slabs_is_left_out_with_a_count(slab_and_crystal, write, caplog):
    path = write(slab_and_crystal)
    assert [frame.stress is None for frame in read_frames(path)] == [True, False, False, False]
    assert caplog.messages == [
        f"{path}: 1 of 4 frames are not periodic in all three directions, so that their stress ('stress') is "
        "not defined and is left out; their other labels are used. (To read none: data.labels.stress: "
        "null, or --stress-key none.)"
    ]


def test_weights_of_labels_are_counted_in_one_line(slab_and_crystal, write, caplog):
    caplog.set_level(logging.INFO, logger="equipot")
    for i, atoms in enumerate(slab_and_crystal):
        atoms.pbc = True
        atoms.info |= {"config_weight": 2.0, "config_energy_weight": min(i, 1)}
    read_frames(path := write(slab_and_crystal))
    assert caplog.messages == [
        f"{path}: 4 of 4 frames have a weight 'config_weight' of their own in the loss (2 to 2), "
        "1 'config_energy_weight' (0 to 1, energy not used where it is 0)."
    ]
    for atoms in slab_and_crystal:
        atoms.info["config_energy_weight"] = 0
    message = failing(write(slab_and_crystal))
    assert "no frame has a label 'energy' for the energy whose weight is not 0" in message


def test_names_that_look_like_labels_and_are_not_read_are_named(slab_and_crystal, write, caplog):
    caplog.set_level(logging.INFO, logger="equipot")
    for atoms in slab_and_crystal:
        atoms.pbc = True
        atoms.info |= {
            "REF_energy": 1.0,
            "free_energy": 2.0,
            "virial": np.ones(9),
            "energy_weight": 0,
            "time": 3.0,
        }
        atoms.arrays["dft_force"] = np.zeros((len(atoms), 3))
    read_frames(path := write(slab_and_crystal))
    assert f"{path}: in 4 of 4 frames `free_energy` differs from `energy`" in caplog.messages[0]
    assert caplog.messages[1:] == [
        f"{path}: not read, though it looks like a label: 'REF_energy' (energy), 'dft_force' (forces), "
        "'energy_weight' (weight), 'virial' (virial)."
    ]


def test_a_name_for_the_stress_alone_takes_that_of_the_virial_away():
    trained = LabelsConfig(virial="V")
    assert named_labels({"forces": "F"}, trained).virial == "V"
    assert named_labels({"stress": "none"}, trained).names("stress") == {}
    both = named_labels({"stress": "S", "virial": "W"}, trained)
    assert both.names("stress") == {"stress": "S", "virial": "W"}


def test_missing_of_an_entry_and_of_all(slab_and_crystal, write):
    slab_and_crystal[2].info["energy"] = np.nan
    path = str(write(slab_and_crystal))
    model = {"train": [path, {"path": [path], "missing": "error"}], "missing": "nan"}
    one, other = DataConfig(**model).sources("train")
    assert [frame.energy is None for frame in read_source(one)[0]] == [False, False, True, False]
    with pytest.raises(DataError, match=r"frame 2 .* 'energy' is nan"):
        read_source(other)
