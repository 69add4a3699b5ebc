"""Make the electron densities of water: PBE/def2-SVP, fitted to Gaussian functions on atoms.

Monomers are distorted as at room temperature, clusters come from Monte Carlo with TIP3P charges in a small
sphere. Each density is fitted to the functions of def2-universal-JFIT up to l = 3, decontracted, in the
Coulomb metric, with the right number of electrons (J. Rackers et al., Mach. Learn.: Sci. Technol. 4, 015027
(2023) did so). The functions of each element and degree are combined to orthonormal ones, whose coefficients
are of the size that they matter; basis.json says how, and follows the model. Overlaps follow from it.

    pip install 'equipot[density]'
    python scripts/datasets/density.py --out examples/07_density

A run that is stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"  # inherited by PySCF; must precede numpy

from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read, write
from e3nn import o3
from pyscf import df, dft, gto, lib
from rich.progress import track
from scipy.spatial.transform import Rotation

from equipot.config.outputs import OutputConfig
from equipot.files import write_json
from equipot.nn.gaussians import GaussianBasis

FUNCTIONAL, ORBITALS, AUXILIARY, L_MAX, GRID_LEVEL = "pbe", "def2-svp", "def2-universal-jfit", 3, 1
TEMPERATURE, STEPS = 300.0, 2000  # K; moves of the Monte Carlo before a cluster is taken
RADII = {1: 0.1, 2: 2.2, 3: 2.8, 4: 3.2}  # Å; oxygen atoms stay within this of the origin
BOND, BOND_SPREAD, ANGLE, ANGLE_SPREAD = 0.96, 0.035, 104.5, 6.0  # Å and degrees
CHARGES = np.array([-0.834, 0.417, 0.417])  # TIP3P, with oxygen's Lennard-Jones parameters
EPSILON, SIGMA = 0.1521 * units.kcal / units.mol, 3.1506
# file: molecules in a frame and number of such frames
SETS = {
    "train": {1: 30, 2: 70, 3: 40},
    "validation": {1: 4, 2: 8, 3: 8},
    "test_dimers": {2: 25},
    "test_tetramers": {4: 12},
}


def molecule(rng: np.random.Generator) -> np.ndarray:
    """(3, 3) Å: O, H, H of a molecule, distorted and turned at random, its oxygen at the origin."""
    bonds = rng.normal(BOND, BOND_SPREAD, 2)
    half = np.radians(rng.normal(ANGLE, ANGLE_SPREAD)) / 2
    flat = [[np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]] * bonds[:, None]
    return np.vstack([np.zeros(3), flat]) @ rotation(rng, np.pi)


def rotation(rng: np.random.Generator, largest: float) -> np.ndarray:
    """(3, 3) about a random axis, by ``largest`` at most."""
    axis = rng.normal(size=3)
    return Rotation.from_rotvec(axis * rng.uniform(0, largest) / np.linalg.norm(axis)).as_matrix()


def energy(molecules: np.ndarray) -> float:
    """Between molecules (n, 3, 3), eV."""
    total = 0.0
    for i in range(len(molecules)):
        for j in range(i):
            apart = np.linalg.norm(molecules[i][:, None] - molecules[j], axis=2)
            sixth = (SIGMA / apart[0, 0]) ** 6
            coulomb = units.Hartree * units.Bohr * (np.outer(CHARGES, CHARGES) / apart).sum()
            total += coulomb + 4 * EPSILON * (sixth**2 - sixth)
    return total


def cluster(size: int, rng: np.random.Generator) -> Atoms:
    """Of ``size`` molecules, from a Monte Carlo of its own."""
    radius = RADII[size]
    molecules = np.array([molecule(rng) for _ in range(size)])

    def placed(centers: np.ndarray) -> np.ndarray | None:
        centers = centers - centers.mean(axis=0)
        inside = np.linalg.norm(centers, axis=1).max() < radius
        return molecules - molecules[:, :1] + centers[:, None] if inside else None

    while (start := placed(rng.normal(scale=radius / 2, size=(size, 3)))) is None:
        pass
    molecules, now = start, energy(start)
    for _ in range(STEPS if size > 1 else 0):
        before, i = molecules, rng.integers(size)
        centers = molecules[:, 0].copy()
        centers[i] += rng.normal(scale=0.12, size=3)
        molecules = molecules.copy()
        molecules[i] = (molecules[i] - before[i, 0]) @ rotation(rng, 0.5)
        moved = placed(centers)
        new = np.inf if moved is None else energy(moved)
        accepted = rng.uniform() < np.exp(min(0.0, (now - new) / (units.kB * TEMPERATURE)))
        molecules, now = (moved, new) if accepted else (before, now)
    return Atoms("OHH" * size, positions=molecules.reshape(-1, 3))


def make_basis() -> dict[str, list[dict]]:
    """For `model.outputs.density.basis`: orthonormal functions of each element and degree."""
    basis: dict[str, list[dict]] = {}
    for element in ("H", "O"):
        shells = gto.uncontract(gto.basis.load(AUXILIARY, element))
        for degree in range(L_MAX + 1):
            exponents = np.array([shell[1][0] for shell in shells if shell[0] == degree])
            if len(exponents):
                ratio = 2 * np.sqrt(np.outer(exponents, exponents)) / np.add.outer(exponents, exponents)
                sizes, vectors = np.linalg.eigh(ratio ** (degree + 1.5))  # of overlaps of primitives
                functions = (vectors / np.sqrt(sizes)).T[::-1]
                entry = {"l": degree, "exponents": exponents.tolist(), "coefficients": functions.tolist()}
                basis.setdefault(element, []).append(entry)
    return basis


class Fit:
    """From density matrices of PySCF to rows of coefficients in e3nn's order."""

    def __init__(self, basis: dict[str, list[dict]]):
        self.species, self.irreps = ["H", "O"], OutputConfig(per="atom", basis=basis).representation
        self.ours = GaussianBasis(basis, self.irreps, self.species)
        self.theirs = {
            element: [
                [s["l"], *np.column_stack([s["exponents"], np.transpose(s["coefficients"])]).tolist()]
                for s in shells
            ]
            for element, shells in basis.items()
        }
        self.turn = [self._harmonics(degree) for degree in range(L_MAX + 1)]

    def _harmonics(self, degree: int) -> np.ndarray:
        """(2l + 1, 2l + 1) from PySCF's to e3nn's: both give the same function at random points."""
        points = np.random.default_rng(0).normal(size=(50, 3))
        shell = {"l": degree, "exponents": [1.0], "coefficients": None}
        one = GaussianBasis({"He": [shell]}, f"1x{degree}{'eo'[degree % 2]}", ["He"])
        where = torch.from_numpy(points), torch.zeros(1, 3).double(), torch.zeros(1).long()
        rows = torch.eye(2 * degree + 1).double().split(1)
        ours = np.stack([one.density(where[0], row, *where[1:]).numpy() for row in rows], axis=1)
        theirs = dft.numint.eval_ao(gto.M(atom="He 0 0 0", basis={"He": [[degree, [1.0, 1.0]]]}), points)
        matrix = np.linalg.lstsq(ours, theirs, rcond=None)[0]
        assert np.abs(ours @ matrix - theirs).max() < 1e-12
        return matrix

    def rows(self, aux: gto.Mole, coefficients: np.ndarray) -> np.ndarray:
        """(functions,) of PySCF → (N, K)."""
        found = np.zeros((aux.natm, o3.Irreps(self.irreps).dim))
        start = 0
        for atom in range(aux.natm):
            for shell in self.ours.shells[self.species.index(aux.atom_symbol(atom))]:
                size = shell.columns.stop - shell.columns.start
                block = coefficients[start : start + size].reshape(-1, 2 * shell.degree + 1)
                found[atom, shell.columns] = (block @ self.turn[shell.degree].T).ravel()
                start += size
        return found

    def __call__(self, mol: gto.Mole, density_matrix: np.ndarray) -> np.ndarray:
        """Rows (N, K) of the Coulomb-metric fit that has all electrons."""
        aux = gto.M(atom=mol.atom, basis=self.theirs, unit="Angstrom", verbose=0)
        coulomb = aux.intor("int2c2e")
        right = np.einsum("ijp,ij->p", df.incore.aux_e2(mol, aux, "int3c2e"), density_matrix)
        types = [self.species.index(aux.atom_symbol(atom)) for atom in range(aux.natm)]
        # ∫ χ: scalars are the same in both orders.
        integrals = np.concatenate(
            [self.ours.integrals[kind][shell.columns] for kind in types for shell in self.ours.shells[kind]]
        )
        fitted, change = np.linalg.solve(coulomb, np.stack([right, integrals], axis=1)).T
        fitted += change * (mol.nelectron - integrals @ fitted) / (integrals @ change)
        return self.rows(aux, fitted)


def mean_field(atoms: Atoms):
    """PySCF's molecule and converged calculation."""
    lib.num_threads(1)
    geometry = list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True))
    mol = gto.M(atom=geometry, basis=ORBITALS, unit="Angstrom", verbose=0)
    mf = dft.RKS(mol, xc=FUNCTIONAL).density_fit()
    mf.grids.level, mf.conv_tol = GRID_LEVEL, 1e-7
    mf.kernel()
    if not mf.converged:
        raise RuntimeError("the self-consistent field did not converge")
    return mol, mf


def deviation(mol: gto.Mole, mf, fit: Fit, rows: np.ndarray) -> float:
    """∫|ρ − Σ c χ| dV / N, ρ that of the calculation."""
    points, weights = mf.grids.coords, mf.grids.weights
    orbitals = dft.numint.eval_ao(mol, points)
    exact = np.einsum("gi,gi->g", orbitals @ mf.make_rdm1(), orbitals)
    where = [torch.from_numpy(array) for array in (points, rows, mol.atom_coords())]
    types = torch.tensor([fit.species.index(mol.atom_symbol(atom)) for atom in range(mol.natm)])
    return float(np.abs(exact - fit.ours.density(*where, types).numpy()) @ weights / mol.nelectron)


def label(atoms: Atoms, fit: Fit) -> Atoms:
    """With the energy (eV), the dipole (e Å), the coefficients, and ∫|ρ − ρ_fit| / N of the fit."""
    mol, mf = mean_field(atoms)
    found = atoms.copy()
    found.arrays["density"] = rows = fit(mol, mf.make_rdm1())
    found.info = {
        "energy": mf.e_tot * units.Hartree,
        "dipole": mf.dip_moment(unit="AU", verbose=0) * units.Bohr,
        "fit_error": deviation(mol, mf, fit, rows),
        "config_type": f"{len(atoms) // 3} molecules",
    }
    return found


def compare(path: Path, fit: Fit) -> None:
    """Print errors of `equipot evaluate --predictions` against the calculation itself, not its fit."""
    errors, dipoles, references = [], [], []
    for atoms in track(read(path, ":"), description=path.name):
        mol, mf = mean_field(atoms)
        rows = atoms.arrays["predicted_density"]
        errors.append(deviation(mol, mf, fit, rows))
        where = torch.from_numpy(mol.atom_coords())
        types = torch.tensor([fit.species.index(symbol) for symbol in atoms.symbols])
        charges, moment = fit.ours.moments(torch.from_numpy(rows), where, types)
        scale = mol.nelectron / float(charges.sum())  # as `equipot density`
        dipoles.append(mol.atom_charges() @ mol.atom_coords() - scale * moment.numpy())
        references.append(mf.dip_moment(unit="AU", verbose=0))
    off, size = (
        np.linalg.norm(x, axis=1).mean() * units.Bohr for x in (np.subtract(dipoles, references), references)
    )
    print(
        f"{path}: {len(errors)} frames; ∫|ρ − ρ_SCF| / N {100 * np.mean(errors):.3f} % on average, "
        f"{100 * np.max(errors):.3f} % at most; dipole off by {off:.4f} of {size:.4f} e Å"
    )


def make_set(name: str, sizes: dict[int, int], fit: Fit, out: Path) -> None:
    """One file; frame i is a function of the set and i alone."""
    target, part = out / f"{name}.xyz", out / f"{name}.part"
    wanted = [size for size, count in sizes.items() for _ in range(count)]
    if not target.exists():
        done = len(read(part, ":", format="extxyz")) if part.exists() else 0
        for i in track(range(done, len(wanted)), description=name):
            rng = np.random.default_rng([list(SETS).index(name), i])
            write(part, label(cluster(wanted[i], rng), fit), format="extxyz", append=True)
        part.replace(target)
    frames = read(target, ":")
    error = 100 * np.mean([atoms.info["fit_error"] for atoms in frames])
    print(f"{target}: {len(frames)} frames; ∫|ρ − ρ_fit| / N is {error:.2f} % on average")


def main() -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished sets")
    parser.add_argument("--compare", type=Path, help="predictions to compare with PySCF's densities")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="only these")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    basis = make_basis()
    write_json(args.out / "basis.json", basis)
    fit = Fit(basis)
    print(f"density: {{per: atom, basis: basis.json}}  # irreps: {fit.irreps}")
    for name in () if args.compare else args.sets:
        make_set(name, SETS[name], fit, args.out)
    if args.compare:
        compare(args.compare, fit)


if __name__ == "__main__":
    main()
