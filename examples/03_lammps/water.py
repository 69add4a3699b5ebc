"""Writes water.data: 192 atoms of water at the density of the liquid, molecules turned at random."""

import itertools

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io.lammpsdata import write_lammps_data
from scipy.spatial.transform import Rotation

EDGE, PER_EDGE = 12.42, 4  # Å, molecules

rotations = Rotation.random(PER_EDGE**3, random_state=0)
box = Atoms(cell=[EDGE] * 3, pbc=True)
for turn, corner in zip(rotations, itertools.product(range(PER_EDGE), repeat=3), strict=True):
    water = molecule("H2O")
    water.positions = turn.apply(water.positions - water.get_center_of_mass())
    water.positions += (np.array(corner) + 0.5) * EDGE / PER_EDGE
    box += water
write_lammps_data("water.data", box, specorder=["H", "O"], masses=True, atom_style="atomic")
print(f"Wrote water.data: {len(box)} atoms")
