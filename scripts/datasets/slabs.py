"""Adsorbates on metal slabs in the layout of Open Catalyst's S2EF data, labelled by a cheap method.

Catalysts are fcc metals and binary alloys A3B, with one atom of B in each layer: 2x2 cells of four layers of
the (111) and (100) surfaces. Tags and constraints are OC20's: 0 for sub-surface atoms (here the lower two
layers), which are fixed, 1 for the surface, 2 for the adsorbate. A system is an adsorbate at a random site of
a bulk-cut slab; its frames are steps of a relaxation and some with all free atoms rattled.

Energies are referenced as OC20's (Chanussot et al., ACS Catal. 11, 6059 (2021)): E(slab + adsorbate) -
E(slab, relaxed) - energies of the adsorbate's atoms, from H2, H2O, CO and N2.

Splits: train; val_id (other systems of the same catalysts and adsorbates); val_ood_ads (other adsorbates),
val_ood_cat (other alloys of the same metals), val_ood_both.

Files: OUT/lmdb/SPLIT/data.0000.lmdb, as OC20's scripts write them from its download (pickles of
torch_geometric's Data, made without it), and OUT/raw/SPLIT/0.extxyz.xz with 0.txt.xz, as in the download.

    equipot import 7net-0 && equipot deploy 7net-0.ckpt --output 7net-0.pt
    python scripts/datasets/slabs.py --teacher 7net-0.pt --out slabs

--teacher emt takes ASE's effective medium theory instead: quick, and not meant for adsorbates.
"""

import argparse
import lzma
import pickle
import sys
import types
from functools import cache
from itertools import permutations
from pathlib import Path

import ase.io
import lmdb
import numpy as np
import torch
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.optimize import LBFGS
from tqdm import tqdm

METALS = {"Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}  # Å, to start from
NUM_ALLOYS, NUM_OOD_ALLOYS = 12, 6
ADSORBATES = ("H", "C", "N", "O", "OH", "CO", "NH", "CH", "CH3")
OOD_ADSORBATES = ("NO", "CH2", "H2O")
GEOMETRIES = {  # Å, the atom that binds first
    **{name: (name, [(0, 0, 0)]) for name in "HCNO"},
    "OH": ("OH", [(0, 0, 0), (0.76, 0, 0.60)]),
    "CO": ("CO", [(0, 0, 0), (0, 0, 1.16)]),
    "NH": ("NH", [(0, 0, 0), (0, 0, 1.03)]),
    "CH": ("CH", [(0, 0, 0), (0, 0, 1.10)]),
    "NO": ("NO", [(0, 0, 0), (0, 0, 1.17)]),
    "CH2": ("CH2", [(0, 0, 0), (0.92, 0, 0.60), (-0.92, 0, 0.60)]),
    "CH3": ("CH3", [(0, 0, 0), (1.03, 0, 0.36), (-0.515, 0.892, 0.36), (-0.515, -0.892, 0.36)]),
    "H2O": ("OH2", [(0, 0, 0), (0.76, 0, 0.59), (-0.76, 0, 0.59)]),
}
SITES = {"111": ("ontop", "bridge", "fcc", "hcp"), "100": ("ontop", "bridge", "hollow")}
SPLITS = {"train": 300, "val_id": 40, "val_ood_ads": 40, "val_ood_cat": 40, "val_ood_both": 40}  # systems
STEPS = 30  # of a relaxation
FRAMES, RATTLED = 5, 2  # of a system
RATTLE = 0.1  # Å, along each axis
VACUUM = 12.0  # Å

# ---------------------------------------------------------------- labels


class Teacher:
    """What labels structures."""

    def __init__(self, name: str):
        if name == "emt":
            self.calculator = EMT
        else:
            from equipot import EquipotCalculator

            model = EquipotCalculator(name)
            self.calculator = lambda: model

    def label(self, atoms: Atoms) -> Atoms:
        """A copy with energy and the forces on all atoms, constraints or not."""
        copy = atoms.copy()
        copy.calc = self.calculator()
        energy, forces = copy.get_potential_energy(), copy.get_forces(apply_constraint=False)
        copy.calc = SinglePointCalculator(copy, energy=energy, forces=forces)
        return copy

    def relax(self, atoms: Atoms, steps: int, fmax: float = 0.03) -> list[Atoms]:
        """Every step of a relaxation, the first one included; ``atoms`` is what is moved."""
        atoms.calc = self.calculator()
        images: list[Atoms] = []
        optimizer = LBFGS(atoms, logfile=None, maxstep=0.1)
        optimizer.attach(lambda: images.append(self.label(atoms)))
        optimizer.run(fmax=fmax, steps=steps)
        return images

    @cache  # noqa: B019
    def lattice_constant(self, metal: str) -> float:
        crystal = bulk(metal, "fcc", a=METALS[metal])
        crystal.calc = self.calculator()
        LBFGS(FrechetCellFilter(crystal), logfile=None).run(fmax=0.01, steps=50)
        return (4 * crystal.get_volume()) ** (1 / 3)

    @cache  # noqa: B019
    def gas_energies(self) -> dict[str, float]:
        """eV of one atom: H from H2, O from H2O, C from CO, N from N2."""
        energy = {}
        for name in ("H2", "H2O", "CO", "N2"):
            gas = molecule(name, vacuum=6.0, pbc=True)
            energy[name] = self.relax(gas, 100, 0.01)[-1].get_potential_energy()
        hydrogen = energy["H2"] / 2
        oxygen = energy["H2O"] - energy["H2"]
        return {"H": hydrogen, "O": oxygen, "C": energy["CO"] - oxygen, "N": energy["N2"] / 2}

    @cache  # noqa: B019
    def slab_energy(self, catalyst: tuple[str, str], facet: str) -> float:
        """eV of the relaxed slab."""
        return self.relax(self.slab(catalyst, facet), 100)[-1].get_potential_energy()

    def slab(self, catalyst: tuple[str, str], facet: str) -> Atoms:
        """Four layers of A, or of A3B where the two differ, cut from the bulk."""
        a, b = catalyst
        constant = (3 * self.lattice_constant(a) + self.lattice_constant(b)) / 4
        build = fcc111 if facet == "111" else fcc100
        slab = build(a, (2, 2, 4), a=constant, vacuum=VACUUM / 2)
        slab.pbc = True
        layers = slab.get_tags()  # 1 is the uppermost
        for layer in range(1, 5):
            slab.symbols[np.flatnonzero(layers == layer)[layer % 4]] = b
        slab.set_tags(np.where(layers > 2, 0, 1))
        slab.set_constraint(FixAtoms(mask=layers > 2))
        return slab


# ---------------------------------------------------------------- structures


def adsorbate_atoms(name: str, rng: np.random.Generator) -> Atoms:
    """Turned at random about z, and tilted a little."""
    atoms = Atoms(*GEOMETRIES[name])
    atoms.rotate(rng.uniform(0, 20), "x")
    atoms.rotate(rng.uniform(0, 360), "z")
    return atoms


def system(teacher: Teacher, catalyst: tuple[str, str], facet: str, adsorbate: str, rng) -> Atoms:
    """A slab with an adsorbate, nothing relaxed."""
    slab = teacher.slab(catalyst, facet)
    atoms = adsorbate_atoms(adsorbate, rng)
    site = rng.choice(SITES[facet])
    metal = covalent_radii[slab.numbers[slab.get_tags() == 1]].max()
    height = {"ontop": 0.95, "bridge": 0.75}.get(site, 0.6) * (metal + covalent_radii[atoms.numbers[0]])
    add_adsorbate(
        slab, atoms, max(height, 0.9) + rng.uniform(-0.1, 0.3), site, offset=tuple(rng.integers(2, size=2))
    )
    tags = slab.get_tags()
    tags[-len(atoms) :] = 2
    slab.set_tags(tags)
    slab.positions[tags == 2, :2] += rng.uniform(-0.3, 0.3, size=2)
    slab.info.clear()
    return slab


def frames_of(teacher: Teacher, atoms: Atoms, rng: np.random.Generator) -> list[tuple[int, Atoms]]:
    """Frames and their numbers: along a relaxation, closer together where it begins; then rattled ones."""
    images = teacher.relax(atoms, STEPS)
    last = len(images) - 1
    numbers = sorted({round(last * (i / (FRAMES - 1)) ** 1.5) for i in range(FRAMES)})
    frames = [(number, images[number]) for number in numbers]
    for i in range(RATTLED):
        moved = images[rng.integers(last // 2, last + 1)].copy()
        free = moved.get_tags() > 0
        moved.positions[free] += rng.normal(scale=RATTLE, size=(free.sum(), 3))
        frames.append((last + 1 + i, teacher.label(moved)))
    return frames


def is_sane(frame: Atoms) -> bool:
    """No force beyond 30 eV/Å on a free atom, and the adsorbate on the surface."""
    tags = frame.get_tags()
    gap = frame.positions[tags == 2, 2].min() - frame.positions[tags == 1, 2].max()
    return np.abs(frame.get_forces()[tags > 0]).max() < 30 and gap < 4


def split_systems(seed: int) -> dict[str, list[tuple[tuple[str, str], str, str]]]:
    """Catalyst, facet and adsorbate of every system."""
    rng = np.random.default_rng(seed)
    alloys = rng.permutation(list(permutations(METALS, 2)))
    alloys = [(str(a), str(b)) for a, b in alloys]
    known = [(metal, metal) for metal in METALS] + alloys[:NUM_ALLOYS]
    unseen = alloys[NUM_ALLOYS : NUM_ALLOYS + NUM_OOD_ALLOYS]
    drawn = {}
    for name, count in SPLITS.items():
        catalysts = unseen if name in ("val_ood_cat", "val_ood_both") else known
        adsorbates = OOD_ADSORBATES if name in ("val_ood_ads", "val_ood_both") else ADSORBATES
        drawn[name] = [
            (
                catalysts[rng.integers(len(catalysts))],
                str(rng.choice(list(SITES))),
                str(rng.choice(adsorbates)),
            )
            for _ in range(count)
        ]
    return drawn


# ---------------------------------------------------------------- files


def data_classes() -> tuple[type, type]:
    """torch_geometric's Data and GlobalStorage, or empty classes of their names, to be pickled by name."""
    try:
        from torch_geometric.data.data import Data
        from torch_geometric.data.storage import GlobalStorage
    except ImportError:
        found = []
        for name in ("Data", "GlobalStorage"):
            module = {"Data": "torch_geometric.data.data", "GlobalStorage": "torch_geometric.data.storage"}[
                name
            ]
            for path in ("torch_geometric", "torch_geometric.data", module):
                sys.modules.setdefault(path, types.ModuleType(path))
            made = type(name, (), {"__module__": module})
            setattr(sys.modules[module], name, made)
            found.append(made)
        return found[0], found[1]
    return Data, GlobalStorage


def data_object(frame: Atoms, reference: float, sid: int, fid: int):
    """What OC20's AtomsToGraphs and preprocess_ef.py make of a frame (no edges)."""
    data_type, storage_type = data_classes()
    fixed = torch.zeros(len(frame))
    fixed[frame.constraints[0].index] = 1
    values = {
        "y": frame.get_potential_energy() - reference,
        "pos": torch.tensor(frame.positions, dtype=torch.float32),
        "cell": torch.tensor(frame.cell.array, dtype=torch.float32).view(1, 3, 3),
        "atomic_numbers": torch.tensor(frame.numbers, dtype=torch.float32),
        "natoms": len(frame),
        "force": torch.tensor(frame.get_forces(apply_constraint=False), dtype=torch.float32),
        "fixed": fixed,
        "tags": torch.tensor(frame.get_tags(), dtype=torch.int64),
        "sid": sid,
        "fid": fid,
    }
    data, storage = object.__new__(data_type), object.__new__(storage_type)
    storage.__dict__ |= {"_mapping": values, "_parent": data}
    data.__dict__ |= {"_store": storage}
    return data


def write_lmdb(path: Path, objects: list) -> None:
    """Keys 0, 1, ... and length, values pickled."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    environment = lmdb.open(str(temporary), map_size=2**34, subdir=False, meminit=False, map_async=True)
    with environment.begin(write=True) as transaction:
        for i, item in enumerate(objects):
            transaction.put(str(i).encode(), pickle.dumps(item, protocol=-1))
        transaction.put(b"length", pickle.dumps(len(objects), protocol=-1))
    environment.sync()
    environment.close()
    temporary.with_name(temporary.name + "-lock").unlink(missing_ok=True)
    temporary.replace(path)


def write_raw(folder: Path, rows: list[tuple[Atoms, float, int, int]]) -> None:
    """Total energies, and what is to be subtracted beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    columns = ["symbols", "positions", "move_mask", "tags", "forces"]
    with lzma.open(folder / "0.extxyz.xz", "wt") as stream:
        for frame, *_ in rows:
            ase.io.write(stream, frame, format="extxyz", columns=columns)
    with lzma.open(folder / "0.txt.xz", "wt") as stream:
        stream.writelines(f"random{sid},frame{fid},{reference!r}\n" for _, reference, sid, fid in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--teacher", default="emt", help="emt, or a deployed model of equipot")
    parser.add_argument("--out", type=Path, default=Path("slabs"))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of systems")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    teacher = Teacher(args.teacher)
    gas = teacher.gas_energies()
    sid = 0
    for number, (name, systems) in enumerate(split_systems(args.seed).items()):
        rng = np.random.default_rng([args.seed, number])
        rows: list[tuple[Atoms, float, int, int]] = []
        for catalyst, facet, adsorbate in tqdm(systems[: max(1, round(args.scale * len(systems)))], name):
            sid += 1
            reference = teacher.slab_energy(catalyst, facet)
            atoms = system(teacher, catalyst, facet, adsorbate, rng)
            reference += sum(gas[symbol] for symbol in atoms.symbols[atoms.get_tags() == 2])
            found = [(fid, frame) for fid, frame in frames_of(teacher, atoms, rng) if is_sane(frame)]
            rows += [(frame, reference, sid, fid) for fid, frame in found]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        write_lmdb(args.out / "lmdb" / name / "data.0000.lmdb", [data_object(*row) for row in rows])
        write_raw(args.out / "raw" / name, rows)
        energies = np.array([frame.get_potential_energy() - reference for frame, reference, *_ in rows])
        free = np.concatenate([f.get_forces(apply_constraint=False)[f.get_tags() > 0] for f, *_ in rows])
        print(f"{name}: {sid} systems by now, {len(rows)} frames")
        print(f"  energies {energies.mean():.2f} ± {energies.std():.2f} eV")
        print(f"  forces on free atoms {np.sqrt((free**2).mean()):.3f} eV/Å rms", flush=True)


if __name__ == "__main__":
    main()
