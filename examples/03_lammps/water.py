"""Writes water.data from the first frame of a file, for in.water.

    python water.py train.xyz.gz [COPIES]       # along each edge of the box, 1 if it is not given

Start from a structure like those the model was trained on: molecules put into a box at random overlap, which
no data set shows, and the model may pull them into each other.
"""

import sys

import ase.io
from ase.io.lammpsdata import write_lammps_data

file, copies = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1
water = ase.io.read(file, 0).repeat(copies)
write_lammps_data("water.data", water, specorder=["H", "O"], masses=True, atom_style="atomic")
print(f"Wrote water.data: {len(water)} atoms")
