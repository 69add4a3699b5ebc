"""`equipot data split`: sizes, equal structures, groups, and what is written."""

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config.data import LabelsConfig
from equipot.data import Split, read_frames
from equipot.data.partition import draw_sets

KEYS = ["--energy-key", "my_energy", "--forces-key", "my_forces"]


def draw(fingerprint, numbers, groups=None, seed=0):
    fingerprint = np.asarray(fingerprint, dtype=np.uint64)
    groups = np.zeros(len(fingerprint)) if groups is None else np.asarray(groups)
    return draw_sets(fingerprint, groups, np.ones(len(fingerprint), bool), numbers, seed)


def test_sizes_are_exact_and_sets_disjoint():
    sets = draw(range(1000), {"train": 700, "validation": 100, "test": 150})
    assert {name: len(rows) for name, rows in sets.items()} == {"train": 700, "validation": 100, "test": 150}
    assert len(np.unique(np.concatenate(list(sets.values())))) == 950
    same = draw(range(1000), {"train": 700, "validation": 100, "test": 150})
    other = draw(range(1000), {"train": 700, "validation": 100, "test": 150}, seed=1)
    assert np.array_equal(sets["test"], same["test"]) and not np.array_equal(sets["test"], other["test"])
    # Drawn from everywhere: the mean of 150 of 1000 numbers is 500 ± 22 (one standard deviation).
    assert abs(sets["test"].mean() - 500) < 4 * 22


@pytest.mark.parametrize("seed", range(5))
def test_equal_structures_stay_together(seed):
    fingerprint = np.random.default_rng(seed).integers(0, 60, size=200)  # each about three times
    sets = draw(fingerprint, {"train": 160, "validation": 20, "test": 20}, seed=seed)
    values = [set(fingerprint[rows].tolist()) for rows in sets.values()]
    assert not values[0] & values[1] and not values[0] & values[2] and not values[1] & values[2]
    for rows, number in zip(sets.values(), (160, 20, 20), strict=True):
        assert number - 6 <= len(rows) <= number


def test_groups_in_proportion():
    groups = np.array(["bulk"] * 200 + ["slab"] * 50 + ["gas"] * 20)
    sets = draw(range(270), {"train": 216, "validation": 27, "test": 27}, groups)
    for name, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        for group, size in (("bulk", 200), ("slab", 50), ("gas", 20)):
            assert abs((groups[sets[name]] == group).sum() - share * size) <= 1.5


@pytest.fixture
def mixed(water, crystals, write):
    """20 molecules, five of them twice, and two isolated atoms."""
    atoms = [
        ase.Atoms(s, info={"my_energy": e, "config_type": "IsolatedAtom"}) for s, e in (("H", -3), ("O", -7))
    ]
    more = []
    for i, one in enumerate(water):
        copy = one.copy()
        copy.positions *= 1.01
        copy.info["config_type"] = "warm" if i % 2 else "cold"
        copy.info["config_weight"] = 2.0
        more.append(copy)
    return write([*atoms, *water, *more, *water[:5]])


def run(*arguments):
    return CliRunner().invoke(app, ["data", "split", *map(str, arguments)])


def test_command(mixed, tmp_path):
    output = tmp_path / "sets"
    result = run(mixed, "--output", output, "--train", "0.6", "--validation", "0.2", "--test", "5", *KEYS)
    assert result.exit_code == 0, result.output
    assert "train: 17 frames" in result.output and "validation: 5 frames" in result.output
    split = Split.load(output / "split.json")
    frames = {
        (frame.file, frame.index): frame
        for frame in read_frames(mixed, LabelsConfig(energy="my_energy", forces="my_forces"))
    }
    for name in ("train", "validation", "test"):
        written = read_frames(output / f"{name}.xyz", LabelsConfig())
        expected = [frames[identity] for identity in getattr(split, name)]
        assert len(written) == len(expected)
        for one, two in zip(written, expected, strict=True):
            # Extended XYZ has 8 decimals.
            np.testing.assert_allclose(one.positions, two.positions, rtol=0, atol=1e-8)
            assert one.energy == pytest.approx(two.energy, abs=1e-8)
            assert (one.weight, one.config_type) == (two.weight, two.config_type)
            if two.forces is not None:
                np.testing.assert_allclose(one.forces, two.forces, rtol=0, atol=1e-8)
    assert sum(frames[identity].is_isolated_atom for identity in split.train) == 2
    assert run(mixed, "--output", output, *KEYS).exit_code != 0


def test_stress_and_cell_come_back(crystals, tmp_path, check_same):
    structures = crystals("OH2", "Si4", "NaCl", "MgO")
    ase.io.write(tmp_path / "a.traj", structures)
    result = run(
        tmp_path / "a.traj", "--output", tmp_path / "sets", "--train", 4, "--validation", 0, "--test", 0
    )
    assert result.exit_code == 0, result.output
    check_same(read_frames(tmp_path / "sets" / "train.xyz"), structures, atol=2e-8)  # 8 decimals
    assert not (tmp_path / "sets" / "test.xyz").exists()


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        (["--train", "30"], "There are 25 frames that are not isolated atoms, "),
        (["--train", "many"], "--train is 'many'; expected a number"),
        (["--test", "1.5"], "--test is '1.5'"),
        (["--train", "0"], "would be empty"),
        (["--train", "0.9", "--validation", "0.12", "--test", "0"], "fractions add up to 1.02, more than"),
        (["--train", "0.5", "--validation", "0.01"], "--validation 0.01 of 25 frames is none"),
        (["--energy-key", "nothing"], "no frame has a label 'nothing'"),
    ],
)
def test_wrong_sizes(mixed, tmp_path, sizes, words):
    result = run(mixed, "--output", tmp_path / "sets", *KEYS, *sizes)
    assert result.exit_code != 0 and words in str(result.exception)
    assert not (tmp_path / "sets").exists()


def test_all_frames_are_used_unless_fewer_are_asked_for(water, tmp_path, write, caplog):
    caplog.set_level("INFO", logger="equipot")
    file = write([*water, *[atoms[:2] for atoms in water[:5]]])  # 15 frames: 12, 1.5 and 1.5
    assert (
        run(file, "--output", tmp_path / "all", "--energy-key", "my_energy", "--forces-key", "none").exit_code
        == 0
    )
    split = Split.load(tmp_path / "all" / "split.json")
    assert len(split.train + split.validation + split.test) == 15 and "in no set" not in caplog.text
    few = run(file, "--output", tmp_path / "few", "--train", 3, "--validation", 1, "--test", 0)
    assert few.exit_code == 0 and "11 frames in no set" in caplog.text


def test_output_that_is_a_file(mixed, tmp_path):
    result = run(mixed, "--output", mixed, *KEYS)
    assert "is a file. Give a folder" in str(result.exception)


def test_all_that_the_files_have_is_kept(water, tmp_path, caplog):
    """Labels of outputs, which the command does not know; in one case energies and lengths are converted."""
    caplog.set_level("INFO", logger="equipot")
    frames = []
    for i, given in enumerate(water[:6]):
        atoms = given.copy()
        atoms.calc = SinglePointCalculator(
            atoms, energy=float(i), dipole=np.array([0.1, i, 0.2]), magmoms=np.arange(3.0)
        )
        atoms.info |= {"alpha": np.arange(9.0) + i, "gap": 0.5, "name": f"water {i}", "units": "Hartree Bohr"}
        atoms.info |= {"electric_field": np.array([0.0, 0.0, 0.1]), "mu_unit": "Debye", "good": True}
        atoms.arrays["born"] = np.arange(27.0).reshape(3, 9)
        atoms.set_tags([300, 1, 2])
        atoms.set_constraint([FixAtoms([0]), FixCartesian(1, [True, False, False])])
        frames.append(atoms)
    ase.io.write(tmp_path / "all.xyz", frames)
    sizes = ("--train", 4, "--validation", 2, "--test", 0)
    units = ("--energy-unit", "Hartree", "--length-unit", "Bohr")
    result = run(tmp_path / "all.xyz", "--output", tmp_path / "sets", *sizes, *units)
    assert result.exit_code == 0, result.exception
    assert (
        "Kept as the files have it, its units too: alpha, born, dipole, electric_field, gap, magmoms, my_"
        in caplog.text
    )
    split = Split.load(tmp_path / "sets" / "split.json")
    for name in ("train", "validation"):
        written = ase.io.read(tmp_path / "sets" / f"{name}.xyz", ":")
        for atoms, (_, index) in zip(written, getattr(split, name), strict=True):
            given = ase.io.read(tmp_path / "all.xyz", index)
            assert atoms.get_potential_energy() == pytest.approx(index * 27.2113862, rel=1e-6)
            np.testing.assert_allclose(atoms.positions, given.positions * 0.52917721, atol=1e-6)
            assert set(atoms.info) == set(given.info) - {"units"} and "units" in given.info
            for key in ("alpha", "electric_field"):
                np.testing.assert_allclose(atoms.info[key], given.info[key])
            assert [atoms.info[key] for key in ("gap", "name", "good")] == [0.5, f"water {index}", True]
            np.testing.assert_allclose(atoms.get_dipole_moment(), [0.1, index, 0.2])
            np.testing.assert_array_equal(atoms.get_magnetic_moments(), np.arange(3.0))
            np.testing.assert_array_equal(atoms.arrays["born"], given.arrays["born"])
            assert atoms.get_tags().tolist() == [300, 1, 2]
            assert _mask(atoms) == _mask(given)


def _mask(atoms):
    fixed = np.zeros((len(atoms), 3), bool)
    for constraint in atoms.constraints:
        fixed[constraint.index] |= getattr(constraint, "mask", np.ones(3, bool))
    return fixed.tolist()
