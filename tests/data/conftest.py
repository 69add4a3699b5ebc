"""Small structures and files for the data tests."""

import os
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest

from equipot.data import Frame


@pytest.fixture
def water():
    """Ten labelled water molecules without a cell, as ASE structures with their labels in info and arrays."""
    random = np.random.default_rng(1)
    structures = []
    for i in range(10):
        positions = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]) + 0.05 * random.normal(
            size=(3, 3)
        )
        atoms = ase.Atoms("OH2", positions=positions)
        atoms.info["my_energy"] = -14.0 - 0.1 * i
        atoms.arrays["my_forces"] = random.normal(size=(3, 3))
        structures.append(atoms)
    return structures


@pytest.fixture
def write(tmp_path):
    """Write structures as extended XYZ; return the path."""

    def write_file(structures, name="frames.xyz") -> Path:
        ase.io.write(tmp_path / name, structures)
        return tmp_path / name

    return write_file


@pytest.fixture
def make_frame():
    """A frame from symbols and positions, with any further Frame fields."""

    def make(symbols, positions, cell=None, pbc=False, **fields) -> Frame:
        return Frame(
            positions=np.array(positions, dtype=np.float64).reshape(-1, 3),
            cell=np.zeros((3, 3)) if cell is None else np.array(cell, dtype=np.float64),
            pbc=np.broadcast_to(pbc, (3,)).astype(bool),
            atomic_numbers=ase.Atoms(symbols).numbers.astype(np.int64),
            **fields,
        )

    return make


@pytest.fixture
def shared_data() -> Path:
    """The folder of public data sets, from EQUIPOT_TEST_DATA or beside the repository."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("EQUIPOT_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set EQUIPOT_TEST_DATA to their folder")
    return folder
