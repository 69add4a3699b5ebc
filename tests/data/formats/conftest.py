"""Structures to write with other programs' tools and to read back."""

import ase
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from equipot.data import read_frames
from equipot.errors import DataError


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
