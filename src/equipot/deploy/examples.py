"""Structures of any elements at bond distances, for models whose training data are not at hand."""

from collections.abc import Sequence

import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list
from numpy.typing import NDArray


def example_structures(species: Sequence[str], seed: int = 0) -> list[Atoms]:
    """Crystals, some strained or smaller than most cutoffs, slabs, molecules, a triclinic box: 104 atoms.

    Every element occurs before one comes again. Atoms are at bond distance by their covalent radii, and a
    little displaced. ``info["name"]`` says what it is.
    """
    rng = np.random.default_rng(seed)
    box = rng.random((10, 3)) @ (triclinic := np.array([[5.0, 0, 0], [1.6, 4.4, 0], [-1.1, 1.3, 4.7]]))
    templates = {
        "diamond": bulk("Si"),
        "face-centred, strained": bulk("Al", cubic=True),
        "body-centred, one atom": bulk("Fe"),
        "rock salt": bulk("NaCl", "rocksalt", a=5.6, cubic=True),
        "zincblende, sheared": bulk("GaAs", "zincblende", a=5.6),
        "wurtzite": bulk("ZnO", "wurtzite", a=3.2, c=5.2),
        "caesium chloride, 16 atoms": bulk("CsCl", "cesiumchloride", a=4.1).repeat(2),
        "slab": fcc111("Pt", (2, 2, 3), vacuum=6.0),
        "slab with a molecule": fcc111("Cu", (2, 2, 2), vacuum=8.0)
        + Atoms("CO", [[2, 2, 12.5], [2, 2, 13.6]]),
        "molecule": molecule("CH3CH2OH"),
        "molecule, aromatic": molecule("C5H5N"),
        "triclinic box": Atoms("C10", box, cell=triclinic, pbc=True),
    }
    # Every element once before one comes again.
    queue = []
    structures = []
    for name, atoms in templates.items():
        while len(queue) < len(atoms):
            queue += list(rng.permutation(species))
        atoms.symbols[:], queue = queue[: len(atoms)], queue[len(atoms) :]
        strain = np.eye(3) + (
            rng.uniform(-0.06, 0.06, (3, 3)) if "strained" in name or "sheared" in name else 0.0
        )
        atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
        # Crystals of hydrogen are else so dense that the rounding of some models is all that one sees.
        atoms = at_bond_distance(atoms, least=1.0)
        atoms.rattle(0.04, seed=seed + len(structures))
        atoms.info = {"name": name}
        structures.append(atoms)
    return structures


def at_bond_distance(
    atoms: Atoms, stretch: float = 1.05, radii: NDArray = covalent_radii, least: float = 0.0
) -> Atoms:
    """A copy, scaled so that its closest pair is at ``stretch`` times the sum of its ``radii`` (by Z, Å).

    It is ``least`` Å apart at least.
    """
    first, second, distance = neighbor_list("ijd", atoms, 8.0)
    radii = radii[atoms.numbers]
    factor = max(stretch / (distance / (radii[first] + radii[second])).min(), least / distance.min())
    scaled = atoms.copy()
    scaled.set_cell(atoms.cell.array * factor)
    scaled.positions *= factor
    return scaled
