"""Make the ethanol data set: GFN2-xTB sampling, PBE/def2-SVP energies and forces.

Frames come from Langevin (NVT) molecular dynamics with GFN2-xTB, started from
the trans and the gauche conformer. Each frame is then labelled with
density-fitted PBE/def2-SVP (restricted; the grid's and the fitting basis's
response are in the gradient), and the isolated atoms with unrestricted
PBE/def2-SVP.

    pip install ase pyscf tblite rich
    python scripts/datasets/ethanol.py --out examples/01_molecule --workers 2

A run that is stopped can be started again: the sampled frames and every
labelled frame are kept in the work folder. Labelling goes through the three
sets in step, so --write-only makes usable sets from an unfinished run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os

# Inherited by the workers: one thread each, and memory kept rather than handed
# back and faulted in again for every block of the grid. Must precede numpy.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MALLOC_MMAP_THRESHOLD_"] = os.environ["MALLOC_TRIM_THRESHOLD_"] = "8000000000"

from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

FUNCTIONAL, BASIS, GRID_LEVEL = "pbe", "def2-svp", 3
CONV_TOL, CONV_TOL_GRAD = 1e-9, 1e-5  # Hartree; norm of the orbital gradient
TIMESTEP_FS, FRICTION_PER_FS = 0.5, 0.01
EQUILIBRATION_STEPS, STEPS_BETWEEN_FRAMES = 2000, 200  # 1 ps, 100 fs
DIHEDRAL = (0, 1, 2, 3)  # C-C-O-H
CONFORMERS = {"trans": 180.0, "gauche": 60.0}  # degrees
SPINS = {"H": 1, "C": 2, "O": 2}  # unpaired electrons of the isolated atoms
# set: (temperatures in K, frames per trajectory, first seed)
SETS = {
    "train": ((300, 400, 500), 50, 100),
    "test": ((300, 400, 500), 14, 200),
    "test_hot": ((800, 900, 1000), 10, 300),
}


@dataclass(frozen=True)
class Trajectory:
    """One molecular-dynamics run: where it starts, how hot, how long, its seed."""

    split: str
    conformer: str
    temperature: int
    frames: int
    seed: int


def trajectories() -> list[Trajectory]:
    """List every run, each with a seed of its own."""
    runs = []
    for split, (temperatures, frames, seed) in SETS.items():
        starts = [(c, t) for t in temperatures for c in CONFORMERS]
        runs += [Trajectory(split, c, t, frames, seed + i) for i, (c, t) in enumerate(starts)]
    return runs


def ethanol(conformer: str) -> Atoms:
    """Build ethanol with the hydroxyl group turned to the conformer's dihedral."""
    atoms = molecule("CH3CH2OH")
    atoms.set_dihedral(*DIHEDRAL, CONFORMERS[conformer], indices=[DIHEDRAL[-1]])
    return atoms


def sample(run: Trajectory) -> list[Atoms]:
    """Run the dynamics and return the frames, centred on the origin."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from tblite.ase import TBLite

    rng = np.random.RandomState(run.seed)
    atoms = ethanol(run.conformer)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    MaxwellBoltzmannDistribution(atoms, temperature_K=run.temperature, rng=rng)
    dynamics = Langevin(
        atoms,
        TIMESTEP_FS * units.fs,
        temperature_K=run.temperature,
        friction=FRICTION_PER_FS / units.fs,
        fixcm=False,
        rng=rng,
    )
    dynamics.run(EQUILIBRATION_STEPS)
    frames = []
    for index in range(run.frames):
        dynamics.run(STEPS_BETWEEN_FRAMES)
        frame = Atoms(atoms.get_chemical_symbols(), atoms.positions - atoms.get_center_of_mass())
        frame.info = {
            "split": run.split,
            "config_type": f"{run.conformer}_{run.temperature}K",
            "seed": run.seed,
            "frame": index,
        }
        frames.append(frame)
    return frames


def mean_field(atoms: Atoms, spin: int = 0):
    """Set up the density-fitted Kohn-Sham calculation (not yet run)."""
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    geometry = list(zip(atoms.get_chemical_symbols(), atoms.positions.tolist(), strict=True))
    mol = gto.M(atom=geometry, basis=BASIS, unit="Angstrom", spin=spin, verbose=0)
    mf = (dft.UKS if spin else dft.RKS)(mol, xc=FUNCTIONAL).density_fit()
    mf.grids.level = GRID_LEVEL
    mf.conv_tol, mf.conv_tol_grad = CONV_TOL, CONV_TOL_GRAD
    return mf


def energy_of(mf, guess=None) -> float:
    """Converge the density and return the energy in eV."""
    energy = mf.kernel(guess)
    if not mf.converged:
        raise RuntimeError("the self-consistent field did not converge")
    return energy * units.Hartree


def coarse_density(atoms: Atoms) -> np.ndarray:
    """Return a starting density, converged loosely on the coarsest grid."""
    mf = mean_field(atoms)
    mf.grids.level, mf.conv_tol, mf.conv_tol_grad = 0, 1e-6, None
    mf.kernel()
    return mf.make_rdm1()


def label(atoms: Atoms) -> tuple[float, np.ndarray]:
    """Return the energy (eV) and forces (eV/Å) of a closed-shell frame."""
    mf = mean_field(atoms)
    energy = energy_of(mf, coarse_density(atoms))
    gradient = mf.nuc_grad_method()
    gradient.grid_response = True
    gradient.auxbasis_response = True
    return energy, -gradient.kernel() * units.Hartree / units.Bohr


def isolated_atom(symbol: str) -> Atoms:
    """Label one isolated atom; second-order steps, as its open p shell turns freely."""
    atoms = Atoms(symbol, positions=[(0.0, 0.0, 0.0)])
    energy = energy_of(mean_field(atoms, SPINS[symbol]).newton())
    atoms.info["config_type"] = "isolated_atom"
    return with_labels(atoms, energy, np.zeros((1, 3)))


def with_labels(atoms: Atoms, energy: float, forces) -> Atoms:
    """Attach an energy and forces to a frame."""
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.asarray(forces))
    return atoms


def key_of(atoms: Atoms) -> str:
    """Name a frame by its positions, so a cached label can never be misplaced."""
    return hashlib.sha256(np.round(atoms.positions, 8).tobytes()).hexdigest()[:24]


def label_task(atoms: Atoms) -> dict:
    """Label a frame in a worker; a failure is reported, not raised."""
    try:
        energy, forces = label(atoms)
    except RuntimeError as error:
        return {"key": key_of(atoms), "error": str(error)}
    return {"key": key_of(atoms), "energy": energy, "forces": forces.tolist()}


def write_whole(path: Path, frames: list[Atoms]) -> None:
    """Write extended XYZ under a temporary name, then rename it."""
    temporary = path.with_name(path.name + ".tmp")
    write(temporary, frames, format="extxyz")
    temporary.replace(path)


def read_cache(path: Path) -> dict[str, dict]:
    """Read the labels made so far; a line cut short by a kill is skipped."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["key"]] = record
    return records


def progress_bar() -> Progress:
    """Make the progress bar."""
    return Progress(*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())


def sampled_frames(path: Path, workers: int) -> list[Atoms]:
    """Return the frames to label, in labelling order; sample them if need be."""
    if not path.exists():
        runs, frames = trajectories(), []
        with get_context("spawn").Pool(workers) as pool, progress_bar() as bar:
            for done in bar.track(pool.imap(sample, runs), len(runs), description="sampling"):
                frames += done
        frames.sort(key=lambda a: (a.info["frame"] + 0.5) / SETS[a.info["split"]][1])
        write_whole(path, frames)
    return read(path, ":")  # positions as rounded in the file, on every run


def label_all(frames: list[Atoms], cache: Path, workers: int) -> None:
    """Label the frames not yet in the cache, appending each as it is done."""
    done = read_cache(cache)
    todo = [a for a in frames if key_of(a) not in done]
    with (
        get_context("spawn").Pool(workers) as pool,
        cache.open("a") as out,
        progress_bar() as bar,
    ):
        results = pool.imap_unordered(label_task, todo)
        for record in bar.track(results, len(todo), description="labelling"):
            if "error" in record:
                bar.console.print(f"frame {record['key']} left out: {record['error']}")
                continue
            out.write("\n" + json.dumps(record))  # newline first: closes a cut line
            out.flush()


def write_sets(frames: list[Atoms], cache: Path, out: Path) -> None:
    """Write each set's labelled frames, trajectory by trajectory."""
    labels = read_cache(cache)
    out.mkdir(parents=True, exist_ok=True)
    for split in SETS:
        chosen = [a.copy() for a in frames if a.info["split"] == split and key_of(a) in labels]
        chosen.sort(key=lambda a: (a.info["seed"], a.info["frame"]))
        for atoms in chosen:
            record = labels[key_of(atoms)]
            with_labels(atoms, record["energy"], record["forces"])
            del atoms.info["split"]
        write_whole(out / f"{split}.xyz", chosen)
        print(f"{split}.xyz: {len(chosen)} frames")
    write_whole(out / "isolated_atoms.xyz", [isolated_atom(symbol) for symbol in SPINS])


def finite_difference_check(atoms: Atoms, step: float = 2e-3) -> None:
    """Compare two force components with five-point differences of the energy."""
    _, forces = label(atoms)
    for index, axis in ((0, 0), (2, 1)):
        energies = []
        for shift in (-2, -1, 1, 2):
            moved = atoms.copy()
            moved.positions[index, axis] += shift * step
            energies.append(energy_of(mean_field(moved), coarse_density(moved)))
        numeric = -np.dot(energies, (1, -8, 8, -1)) / (12 * step)
        error = forces[index, axis] - numeric
        print(f"{atoms.symbols[index]}{index} {'xyz'[axis]}: {numeric:.6f} error {error:.1e} eV/Å")
    print(f"net force {np.abs(forces.sum(0)).max():.1e} eV/Å")


def main() -> None:
    """Parse the command line and make the data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished sets")
    parser.add_argument("--work", type=Path, default=Path("runs/ethanol"), help="work folder")
    parser.add_argument("--workers", type=int, default=2, help="worker processes")
    parser.add_argument("--write-only", action="store_true", help="write what is labelled so far")
    parser.add_argument("--check", action="store_true", help="only check forces on one frame")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    frames = sampled_frames(args.work / "sampled.xyz", args.workers)
    cache = args.work / "labels.jsonl"
    if args.check:
        finite_difference_check(frames[0])
        return
    if not args.write_only:
        label_all(frames, cache, args.workers)
    write_sets(frames, cache, args.out)


if __name__ == "__main__":
    main()
