"""`equipot data split`: sizes, equal structures, groups, and what is written."""

import ase
import ase.io
import numpy as np
import pytest
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
