"""Make two sets of molecules that nothing of `auto` was chosen by, with GFN2-xTB; seconds, and some minutes.

`g2`: five distorted copies of each of the 148 small molecules of ASE's G2 set, radicals as doublets, 14
elements. `ferrocene`: dynamics of one organometallic molecule at 500 K, a frame every 10 fs.

    pip install ase tblite
    python scripts/datasets/molecules.py g2 g2.xyz
"""

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from tblite.ase import TBLite

SEED = 3
DISPLACEMENTS = 0.04, 0.06, 0.08, 0.10, 0.12  # Å, standard deviation of each coordinate
TEMPERATURE, TIME_STEP, FRICTION = 500.0, 0.5, 0.02  # K, fs, 1/fs
EQUILIBRATION, FRAMES, STEPS_BETWEEN = 200, 500, 20
# Å: height of the rings above iron, radii of their carbon and hydrogen atoms; eclipsed.
HEIGHT, RADII = 1.65, {"C": 1.21, "H": 2.29}


def labelled(atoms: Atoms) -> Atoms:
    """A copy with the energy (eV) and the forces (eV/Å) that its calculator gives."""
    frame = Atoms(atoms.numbers, atoms.positions)
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    frame.calc = SinglePointCalculator(frame, **results)
    return frame


def distorted_molecules(rng: np.random.RandomState) -> list[Atoms]:
    """Shuffled copies of all molecules of G2 that have a bond."""
    frames = []
    for atoms in (g2[name] for name in g2.names):
        for displacement in DISPLACEMENTS if len(atoms) > 1 else ():
            copy = Atoms(atoms.numbers, atoms.positions)
            copy.rattle(displacement, rng=rng)
            multiplicity = 1 + int(copy.numbers.sum()) % 2
            copy.calc = TBLite(method="GFN2-xTB", multiplicity=multiplicity, verbosity=0)
            frames.append(labelled(copy))
    rng.shuffle(frames)
    return frames


def ferrocene() -> Atoms:
    """Fe(C5H5)2, its rings eclipsed."""
    angles = 2 * np.pi / 5 * np.arange(5)
    rings = [
        (symbol, (radius * np.cos(angle), radius * np.sin(angle), height))
        for height in (HEIGHT, -HEIGHT)
        for symbol, radius in RADII.items()
        for angle in angles
    ]
    symbols, positions = zip(("Fe", (0.0, 0.0, 0.0)), *rings, strict=True)
    return Atoms(symbols, positions)


def frames_of_dynamics(atoms: Atoms, rng: np.random.RandomState) -> list[Atoms]:
    """Langevin dynamics after some equilibration."""
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms, TIME_STEP * units.fs, temperature_K=TEMPERATURE, friction=FRICTION / units.fs, rng=rng
    )
    dynamics.run(EQUILIBRATION)
    frames = []
    for _ in range(FRAMES):
        dynamics.run(STEPS_BETWEEN)
        frames.append(labelled(atoms))
    return frames


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=("g2", "ferrocene"))
    parser.add_argument("out", type=Path, help="extended XYZ")
    arguments = parser.parse_args()
    rng = np.random.RandomState(SEED)
    g2_wanted = arguments.set == "g2"
    frames = distorted_molecules(rng) if g2_wanted else frames_of_dynamics(ferrocene(), rng)
    write(arguments.out, frames, format="extxyz")
    print(f"{arguments.out}: {len(frames)} frames")


if __name__ == "__main__":
    main()
