"""Tetrahedra of metals with EMT labels, for trainings of a second, and a model for them."""

import ase
import ase.io
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

SMALL = {"type": "nequip", "l_max": 1, "layers": 2, "channels": 2, "num_bessel": 3, "radial_hidden": [4]}
MODEL = {**SMALL, "cutoff": 3.6, "dtype": "float64"}


def write_clusters(path, symbols, number, seed, level=1.0, shift=0.0):
    """Tetrahedra with EMT labels times ``level``, and ``shift`` eV per atom: another level of theory."""
    generator = np.random.default_rng(seed)
    frames = []
    for i in range(number):
        atoms = ase.Atoms(symbols[i % len(symbols)], 2.5 * np.array([[0, 0, 0], *np.eye(3)]))
        atoms.positions += generator.normal(scale=0.15, size=(4, 3))
        atoms.calc = EMT()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = SinglePointCalculator(atoms, energy=level * energy + 4 * shift, forces=level * forces)
        frames.append(atoms)
    ase.io.write(path, frames, columns=["symbols", "positions", "forces"])
    return str(path)
