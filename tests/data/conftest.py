"""Small structures and files for the data tests."""

import os
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equipot.data import Frame, read_frames
from equipot.errors import DataError
from equipot.quantities import LABELS


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
            values={name: fields[name] for name in LABELS if fields.get(name) is not None},
            **{name: value for name, value in fields.items() if name not in LABELS},
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


@pytest.fixture
def crystals():
    """Function (symbols, ...) -> one labelled periodic structure for each; labels in an ASE calculator."""

    def make(*symbols: str) -> list[ase.Atoms]:
        random = np.random.default_rng(5)
        structures = []
        for name in symbols:
            size = len(ase.Atoms(name))
            cell = 8 * np.eye(3) + 0.2 * random.normal(size=(3, 3))
            atoms = ase.Atoms(name, positions=3 * random.normal(size=(size, 3)), cell=cell, pbc=True)
            labels = {"energy": random.normal(), "forces": random.normal(size=(size, 3)),
                      "stress": random.normal(size=6)}  # fmt: skip
            atoms.calc = SinglePointCalculator(atoms, **labels)
            structures.append(atoms)
        return structures

    return make


@pytest.fixture
def check_same():
    """Function (frames, structures, atol): same numbers, positions, cells and labels."""

    def check(frames, structures, atol=0.0, stress=True):
        assert len(frames) == len(structures)
        for frame, atoms in zip(frames, structures, strict=True):
            assert frame.atomic_numbers.tolist() == atoms.numbers.tolist()
            assert frame.pbc.tolist() == atoms.pbc.tolist()
            pairs = [(frame.positions, atoms.positions), (frame.cell, atoms.cell.array)]
            pairs += [(frame.energy, atoms.get_potential_energy()), (frame.forces, atoms.get_forces())]
            pairs += [(frame.stress, atoms.get_stress(voigt=False))] if stress else []
            for found, expected in pairs:
                np.testing.assert_allclose(found, expected, rtol=0, atol=atol)

    return check


@pytest.fixture
def failing():
    """Function (path, ...) -> the message of the DataError that reading raises."""

    def message(*args, **kwargs) -> str:
        with pytest.raises(DataError) as error:
            read_frames(*args, **kwargs)
        return str(error.value)

    return message
