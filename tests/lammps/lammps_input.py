"""Inputs for LAMMPS and what comes out, shared by the tests of this folder."""

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.io.lammpsdata import write_lammps_data

SPECIES, CUTOFF = ["O", "Si"], 4.0


def oxide(repeat=(2, 2, 2), triclinic: bool = False) -> Atoms:
    """Rattled SiO in rock salt: every neighborhood differs; a 4.6 Å cell is hardly larger than the cutoff."""
    atoms = bulk("SiO", "rocksalt", a=4.6, cubic=True) * repeat
    if triclinic:
        skew = np.array([[1.0, 0.0, 0.0], [0.2, 1.0, 0.0], [0.1, -0.1, 1.0]])
        atoms.set_cell(atoms.cell.array @ skew, scale_atoms=True)
    atoms.rattle(0.1, seed=1)
    return atoms


def write_data(path: Path, atoms: Atoms, specorder=SPECIES) -> None:
    write_lammps_data(path, atoms, specorder=specorder, masses=True, atom_style="atomic", units="metal")


@dataclass(frozen=True)
class Result:
    """What LAMMPS said."""

    returncode: int
    output: str

    @property
    def thermo(self) -> np.ndarray:
        """(rows, columns) of all tables, one below the other."""
        tables = re.findall(r"^ +Step .*\n((?: +[-\d].*\n)+)", self.output, flags=re.M)
        return np.array(
            [[float(word) for word in row.split()] for table in tables for row in table.splitlines()]
        )


THERMO = "thermo_style custom step pe pxx pyy pzz pxy pxz pyz\nthermo_modify format float %.15g\n"


def setup(model: Path, *, data: str = "atoms.data", before: str = "", pair: str | None = None) -> str:
    """An input up to the pair style: atoms, model, precise thermo output."""
    pair = pair or f"pair_style equipot\npair_coeff * * {model} O Si\n"
    return (
        f"units metal\n{before}\natom_style atomic\nread_data {data}\n{pair}\nneighbor 0.5 bin\n"
        f"timestep 0.0005\n{THERMO}thermo 20\n"
    )


def rewrite(source: Path, target: Path, change) -> Path:
    """A copy of a model file whose entries (name, bytes) are changed; None keeps them."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info, change(info.filename, content) or content)
    return target


def read_dump(path: Path) -> np.ndarray:
    """(frames, atoms, columns), sorted by id if the dump was."""
    frames = []
    for text in path.read_text().split("ITEM: TIMESTEP")[1:]:
        rows = text[text.index("ITEM: ATOMS") :].splitlines()[1:]
        frames.append([[float(word) for word in row.split()] for row in rows])
    return np.array(frames)
