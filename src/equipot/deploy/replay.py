"""What a model predicts for structures that span its elements, so that fine-tuning can be told of it."""

import io
from collections.abc import Sequence
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import bulk, fcc111
from ase.calculators.singlepoint import SinglePointCalculator
from ase.collections import g2
from ase.data import covalent_radii, vdw_radii

from equipot.data.dataset import graph_from_atoms
from equipot.deploy.checkpoint import Checkpoint
from equipot.deploy.examples import at_bond_distance
from equipot.files import write_text
from equipot.models.potential import Potential
from equipot.models.predict import Prediction, predict

_ANIONS = ("O", "F", "S", "Cl", "N", "Se", "Br", "P", "Te", "I", "C", "H", "As")
# Atoms of noble gases touch where those of others would overlap.
_RADII = covalent_radii.copy()
_NOBLE = [2, 10, 18, 36, 54, 86]
_RADII[_NOBLE] = vdw_radii[_NOBLE]
_PEROVSKITE = Atoms(
    "SrTiO3", [[0, 0, 0], [2, 2, 2], [2, 2, 0], [2, 0, 2], [0, 2, 2]], cell=[4, 4, 4], pbc=True
)
_HEUSLER = Atoms(
    "Cu2MnAl", [[1.5] * 3, [4.5] * 3, [3] * 3, [0] * 3], cell=[[0, 3, 3], [3, 0, 3], [3, 3, 0]], pbc=True
)
# Prototypes: crystals whose elements are replaced, and which of them becomes an anion.
_CRYSTALS = (
    (bulk("NaCl", "rocksalt", a=5.6), "Cl"),
    (bulk("Cu", cubic=True), None),
    (_PEROVSKITE, "O"),
    (bulk("CsCl", "cesiumchloride", a=4.1), None),
    (bulk("ZnS", "wurtzite", a=3.8, c=6.2), "S"),
    (bulk("Fe", cubic=True), None),
    (bulk("CaF2", "fluorite", a=5.5), "F"),
    (_HEUSLER, None),
    (bulk("ZnS", "zincblende", a=5.4), "S"),
    (bulk("Si"), None),
    (Atoms("AuCu3", _PEROVSKITE.positions[[0, 2, 3, 4]], cell=[4, 4, 4], pbc=True), None),
    (bulk("Mg"), None),
)
_LARGEST_FORCE = 5.0  # eV/Å; a loss of squares would see little else
_KINDS = ("crystal", "molecule", "crystal", "slab", "crystal", "crystal", "cluster", "crystal", "liquid")
_KINDS = (*_KINDS, "crystal")


class _Elements:
    """Gives out elements, each once before one comes again: nonmetals and others by themselves."""

    def __init__(self, species: Sequence[str], rng: np.random.Generator):
        self._rng = rng
        self.anions = [symbol for symbol in species if symbol in _ANIONS]
        self.others = [symbol for symbol in species if symbol not in _ANIONS]
        self._queues: dict[bool, list[str]] = {True: [], False: []}

    def next(self, anion: bool = False) -> str:
        anion = (anion and bool(self.anions)) or not self.others
        if not self._queues[anion]:
            self._queues[anion] = self._rng.permutation(self.anions if anion else self.others).tolist()
        return self._queues[anion].pop()


def replay_structures(species: Sequence[str], number: int, seed: int = 0) -> list[Atoms]:
    """``number`` crystals, slabs, molecules, some of them in a box together, and clusters of these elements.

    Prototypes of crystals have 1 to 3 elements at bond distance by covalent radii, times 0.98 to 1.14, and
    are strained and displaced; molecules are those of the G2 set (Curtiss et al., J. Chem. Phys. 106, 1063
    (1997)) that the elements allow. Metals, and nonmetals, each occur once before one comes again. Without a
    metal there are molecules and clusters only. Random, but the same for the same arguments;
    ``info["config_type"]`` says what it is.
    """
    rng = np.random.default_rng(seed)
    elements = _Elements(species, rng)
    molecules = [name for name in g2.names if len(g2[name]) > 1 and set(g2[name].symbols) <= set(species)]
    found = []
    for i in range(number):
        kind = _KINDS[i % len(_KINDS)]
        if not elements.others and kind in ("crystal", "slab"):
            kind = ("liquid", "molecule", "cluster")[i % 3]
        if not molecules and kind in ("liquid", "molecule"):
            kind = "cluster"
        if kind == "crystal":
            atoms = _crystal(elements, rng, i)
        elif kind == "slab":
            atoms = _slab(elements, rng)
        elif kind == "cluster":
            atoms = _cluster(elements, rng)
        else:
            atoms = _molecules(molecules, rng, 1 if kind == "molecule" else 2)
        stiff = 0.05 if kind in ("molecule", "liquid") else 0.12
        atoms.positions += rng.normal(scale=rng.uniform(0.01, stiff), size=(len(atoms), 3))
        plain = Atoms(atoms.numbers, np.round(atoms.positions, 8), cell=atoms.cell, pbc=atoms.pbc)
        plain.info = {"config_type": kind}
        found.append(plain)
    return found


def _crystal(elements: _Elements, rng: np.random.Generator, number: int) -> Atoms:
    prototype, anion = _CRYSTALS[number % len(_CRYSTALS)]
    before = prototype.get_chemical_symbols()
    new = {symbol: elements.next(symbol == anion) for symbol in sorted(set(before))}
    atoms = prototype.copy()
    atoms.set_chemical_symbols([new[symbol] for symbol in before])
    atoms = at_bond_distance(atoms, rng.uniform(0.98, 1.14), _RADII)
    if len(atoms) < 5:
        atoms = atoms.repeat(rng.permutation([2, 1, 1]))
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.uniform(-0.04, 0.04, (3, 3))), scale_atoms=True)
    return atoms


def _slab(elements: _Elements, rng: np.random.Generator) -> Atoms:
    """Four close-packed layers of one metal or, by turns, of two, 12 Å from the next slab."""
    symbols = [elements.next() for _ in range(int(rng.integers(1, 3)))]
    atoms = fcc111("Cu", (1, 1, 4), vacuum=0.0)
    atoms.set_chemical_symbols([symbols[i % len(symbols)] for i in range(4)])
    atoms.pbc = (True, True, False)
    atoms = at_bond_distance(atoms, rng.uniform(0.98, 1.12), _RADII)
    atoms.center(vacuum=6.0, axis=2)
    atoms.pbc = True
    return atoms


def _molecules(names: Sequence[str], rng: np.random.Generator, number: int) -> Atoms:
    """One molecule, or ``number`` of a kind, turned at random, side by side in a periodic box."""
    name, stretch = str(rng.choice(names)), rng.uniform(0.98, 1.04)
    single = Atoms(g2[name].numbers, stretch * g2[name].positions)
    if number == 1:
        return single
    edge = float(single.get_all_distances().max()) + rng.uniform(2.4, 4.0)
    atoms = Atoms(cell=[number * edge, edge, edge], pbc=True)
    for i in range(number):
        turned = single.copy()
        turned.rotate(rng.uniform(0, 360), rng.normal(size=3))
        turned.positions += np.array([(i + 0.5) * edge, edge / 2, edge / 2]) - turned.positions.mean(axis=0)
        atoms += turned
    return atoms


def _cluster(elements: _Elements, rng: np.random.Generator) -> Atoms:
    """2 to 7 atoms of up to three elements: each touches another one."""
    symbols = [elements.next(anion=k == 1) for k in range(int(rng.integers(1, 4)))]
    atoms = Atoms(symbols[:1], [[0.0] * 3])
    size = max(2, int(rng.integers(len(symbols), 8)))
    while len(atoms) < size:
        new = Atoms([symbols[len(atoms) % len(symbols)]])
        direction = rng.normal(size=3)
        reach = _RADII[new.numbers] + _RADII[atoms.numbers]
        touched = int(rng.integers(len(atoms)))
        step = rng.uniform(1.0, 1.15) * reach[touched] * direction / np.linalg.norm(direction)
        new.positions[:] = atoms.positions[touched] + step
        if (np.linalg.norm(atoms.positions - new.positions, axis=1) > 0.95 * reach).all():
            atoms += new
    return atoms


def predict_replay(potential: Potential, structures: Sequence[Atoms]) -> list[Atoms]:
    """``structures`` with the energy (eV), forces (eV/Å) and, of periodic ones, stress (eV/Å³) of a model.

    Those with forces that no material has are stretched by 3 % at a time, 12 times at most.

    Raises:
        UnknownSpeciesError: an element that the potential does not know.
    """
    found = []
    for atoms in structures:
        prediction = _predict(potential, atoms)
        for _ in range(12):
            if prediction.forces.abs().max() < _LARGEST_FORCE:
                break
            atoms = _stretched(atoms)
            prediction = _predict(potential, atoms)
        labels = {"energy": float(prediction.energy), "forces": prediction.forces.numpy()}
        if atoms.pbc.all():
            labels["stress"] = prediction.stress[0].numpy()
        found.append(labelled(atoms, labels))
    return found


def _predict(potential: Potential, atoms: Atoms) -> Prediction:
    return predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff))


def _stretched(atoms: Atoms) -> Atoms:
    longer = atoms.copy()
    longer.set_cell(1.03 * atoms.cell.array)
    longer.positions = np.round(1.03 * atoms.positions, 8)
    return longer


def labelled(atoms: Atoms, labels: dict) -> Atoms:
    """A copy of the bare structure and its group with these labels."""
    plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    plain.info = {key: atoms.info[key] for key in ("config_type",) if key in atoms.info}
    plain.calc = SinglePointCalculator(plain, **labels)
    return plain


def replay_text(frames: Sequence[Atoms]) -> str:
    """Extended XYZ."""
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    return text.getvalue()


def write_replay(model: Checkpoint, number: int, path: Path) -> None:
    """Write ``number`` frames of `replay_structures` as a model of one level of theory predicts them.

    Raises:
        ModelFileError: the model has several levels.
    """
    potential = model.at_level(None).potential
    write_text(path, replay_text(predict_replay(potential, replay_structures(potential.species, number))))
