"""NumPy archives as rMD17 and sGDML lay them out."""

import numpy as np
import pytest

from equipot.config.data import LabelsConfig
from equipot.data import read_frames

F, N = 5, 3


@pytest.fixture
def rmd17():
    """The arrays of an rMD17 file (figshare 12672038): names, shapes and types."""
    random = np.random.default_rng(0)
    return {
        "nuclear_charges": np.array([8, 1, 1], dtype=np.uint8),
        "coords": random.normal(size=(F, N, 3)),
        "energies": random.normal(size=F),
        "forces": random.normal(size=(F, N, 3)),
        "old_indices": np.arange(F),
        "old_energies": random.normal(size=F),
        "old_forces": random.normal(size=(F, N, 3)),
    }


def test_rmd17(tmp_path, rmd17):
    np.savez(tmp_path / "rmd17.npz", **rmd17)
    frames = read_frames(tmp_path / "rmd17.npz")
    assert [frame.index for frame in frames] == list(range(F))
    for i, frame in enumerate(frames):
        assert frame.atomic_numbers.tolist() == [8, 1, 1] and not frame.pbc.any()
        assert frame.positions.tolist() == rmd17["coords"][i].tolist()
        assert (frame.energy, frame.forces.tolist()) == (rmd17["energies"][i], rmd17["forces"][i].tolist())
    old = read_frames(tmp_path / "rmd17.npz", LabelsConfig(energy="old_energies", forces="old_forces"))
    assert old[2].energy == rmd17["old_energies"][2]
    assert old[2].forces.tolist() == rmd17["old_forces"][2].tolist()


def test_sgdml_layout(tmp_path):
    """As sgdml's documentation describes data set files: z, R, E, F, type 'd', name, theory, md5, units."""
    random = np.random.default_rng(0)
    arrays = {"z": np.array([8, 1, 1]), "R": random.normal(size=(F, N, 3)), "E": random.normal(size=(F, 1)),
              "F": random.normal(size=(F, N, 3)), "type": "d", "name": "water", "theory": "PBE", "md5": "00",
              "e_unit": "eV", "r_unit": "Ang"}  # fmt: skip
    np.savez(tmp_path / "a.npz", **arrays)
    for i, frame in enumerate(read_frames(tmp_path / "a.npz")):
        assert frame.energy == arrays["E"][i, 0]
        assert frame.forces.tolist() == arrays["F"][i].tolist()


def test_crystal_with_one_cell_or_one_each(tmp_path, rmd17):
    cells = np.array([np.eye(3) * (8 + i) for i in range(F)])
    for cell, expected in ((cells, 12.0), (cells[0], 8.0)):
        np.savez(tmp_path / "a.npz", cell=cell, pbc=[True] * 3, **rmd17)
        assert read_frames(tmp_path / "a.npz")[4].cell[0, 0] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coords": None}, "no array with the positions; expected one called coords or R"),
        ({"nuclear_charges": None}, "no array with the numbers"),
        (
            {"forces": np.zeros((F, 2, 3))},
            r"'forces' has shape (5, 2, 3), but (F, N, 3) with F = 5 frames and N = 3",
        ),
        ({"energies": np.zeros(4)}, "'energies' has shape (4,)"),
        ({"coords": np.zeros((F, N))}, "'coords' has shape (5, 3)"),
        ({"nuclear_charges": np.zeros(3)}, "one atomic number per atom"),
        (
            {"energies": None},
            "no frame has a label 'energy' for the energy. Names with single numbers there: old_",
        ),
    ],
)
def test_wrong_content(tmp_path, rmd17, failing, change, words):
    arrays = {name: value for name, value in {**rmd17, **change}.items() if value is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    message = failing(tmp_path / "a.npz")
    assert message.startswith(f"{tmp_path / 'a.npz'}") and words in message


def test_truncated(tmp_path, rmd17, failing):
    np.savez(tmp_path / "a.npz", **rmd17)
    content = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(content[: len(content) // 2])
    assert "not a complete .npz archive" in failing(tmp_path / "a.npz")


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (self.target, "w"))


def test_pickle_is_refused_and_does_not_run(tmp_path, rmd17, failing):
    target = tmp_path / "was_here"
    np.savez(tmp_path / "a.npz", extra=np.array([Attack(str(target))], dtype=object), **rmd17)
    message = failing(tmp_path / "a.npz")
    assert "array 'extra' is a Python pickle" in message and "refused" in message
    assert not target.exists()
