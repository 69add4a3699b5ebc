"""Silicon frames labelled with plane-wave DFT (Quantum ESPRESSO `pw.x`).

Level of theory: PBE, norm-conserving pseudopotential `Si.pbe-rrkj.UPF` (4 valence electrons),
22 Ry wavefunction cutoff (88 Ry for the density), Gaussian smearing of 0.01 Ry, the same k-points
for every cell type (a half-shifted 2x2x2 mesh of the cubic cell, folded), no symmetry, no spin,
SCF converged to 1e-9 Ry.
The energy is the free energy E - TS that pw.x prints after `!`, the one whose derivatives the
forces and stresses are. Frames hold energy (eV), forces (eV/A) and stress (eV/A^3, Voigt order
xx yy zz yz xz xy, ASE's sign: negative under compression).

Needs `pw.x` and its pseudopotential (Debian: quantum-espresso, quantum-espresso-data) and the
Python packages ase, matscipy and tqdm. To run it:

    python scripts/datasets/silicon.py --out examples/02_crystal --workers 1

Labels are cached in --cache, one file per pw.x input, so a killed run goes on where it stopped.
--max-minutes stops labelling early; what is done by then is written, balanced over the groups.
--check measures convergence and the stress against finite differences instead.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import bulk, make_supercell
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.optimize import FIRE
from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms import StillingerWeber
from matscipy.calculators.manybody.explicit_forms.stillinger_weber import (
    Stillinger_Weber_PRB_31_5262_Si,
)
from tqdm import tqdm

LATTICE_CONSTANT = 5.47  # A, near the PBE minimum
ECUT = 22.0  # Ry
DENSITY = 2  # k-points along each axis of the cubic cell
DEGAUSS = 0.01  # Ry
CONV_THR = 1e-9  # Ry
PSEUDO = "Si.pbe-rrkj.UPF"
SEED = 20240

# Supercells of the primitive cell, by number of atoms.
CELLS = {
    "prim2": np.eye(3, dtype=int),
    "cubic8": np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]),
    "tet16": np.array([[-2, 2, 2], [1, -1, 1], [1, 1, -1]]),
    "bcc32": np.array([[-3, 1, 1], [1, -3, 1], [1, 1, -3]]),
}

# (group, cell): (training frames, test frames)
PLAN = {
    ("rattle", "prim2"): (20, 4),
    ("rattle", "cubic8"): (20, 4),
    ("rattle", "tet16"): (5, 1),
    ("rattle", "bcc32"): (1, 0),
    ("strain", "prim2"): (45, 8),
    ("strain", "cubic8"): (12, 3),
    ("vacancy", "cubic8"): (16, 4),
    ("vacancy", "tet16"): (6, 2),
    ("vacancy", "bcc32"): (1, 0),
    ("hot", "cubic8"): (30, 6),
    ("hot", "tet16"): (8, 2),
    ("hot", "bcc32"): (1, 1),
}
TEMPERATURES = (1500.0, 2200.0, 3000.0)  # K, of the hot group

INPUT = """&control
  calculation = 'scf', prefix = 'si', outdir = './out', pseudo_dir = '{pseudo_dir}'
  tprnfor = .true., tstress = .true., disk_io = 'low'
/
&system
  ibrav = 0, nat = {nat}, ntyp = 1, ecutwfc = {ecut}, nosym = .true.
  occupations = 'smearing', smearing = 'gaussian', degauss = {degauss}
/
&electrons
  conv_thr = {conv_thr}, electron_maxstep = 100, mixing_beta = {beta}
/
ATOMIC_SPECIES
Si 28.085 {pseudo}
CELL_PARAMETERS angstrom
{cell}
ATOMIC_POSITIONS angstrom
{positions}
K_POINTS crystal
{kpoints}
"""


# ---------------------------------------------------------------- sampling


def diamond(cell: str) -> Atoms:
    return make_supercell(bulk("Si", "diamond", a=LATTICE_CONSTANT), CELLS[cell])


def rattle(atoms: Atoms, sigma: float, rng) -> None:
    """Gaussian displacements, `sigma` A along each axis."""
    atoms.positions += rng.normal(scale=sigma, size=atoms.positions.shape)


def stillinger_weber() -> Manybody:
    return Manybody(**StillingerWeber(Stillinger_Weber_PRB_31_5262_Si))


def sample_rattle(cell: str, rng) -> Atoms:
    """Rattled diamond, root-mean-square displacement 0.02-0.2 A."""
    atoms = diamond(cell)
    rattle(atoms, rng.uniform(0.02, 0.2) / math.sqrt(3), rng)
    return atoms


def sample_strain(cell: str, rng) -> Atoms:
    """Volumetric (linear +-3 %), uniaxial (+-5 %), shear (+-5 %) or mixed strain, then a rattle."""
    strain = np.zeros((3, 3))
    kind = rng.choice(["volumetric", "uniaxial", "shear", "mixed"])
    if kind == "volumetric":
        strain += np.eye(3) * rng.uniform(-0.03, 0.03)
    elif kind == "uniaxial":
        axis = rng.integers(3)
        strain[axis, axis] = rng.uniform(-0.05, 0.05)
    elif kind == "shear":
        i, j = rng.choice(3, size=2, replace=False)
        strain[i, j] = strain[j, i] = rng.uniform(-0.05, 0.05)
    else:
        strain = rng.uniform(-0.03, 0.03, size=(3, 3))
        strain = (strain + strain.T) / 2
    atoms = diamond(cell)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
    rattle(atoms, rng.uniform(0.0, 0.08), rng)
    return atoms


def sample_vacancy(cell: str, rng) -> Atoms:
    """One atom removed, 0-20 steps of relaxation with Stillinger-Weber, then a rattle."""
    atoms = diamond(cell)
    del atoms[int(rng.integers(len(atoms)))]
    rattle(atoms, 0.02, rng)
    atoms.calc = stillinger_weber()
    FIRE(atoms, logfile=None).run(fmax=0.05, steps=int(rng.integers(21)))
    atoms.calc = None
    rattle(atoms, rng.uniform(0.01, 0.1), rng)
    return atoms


def hot_trajectory(cell: str, temperature: float, count: int, rng) -> list[Atoms]:
    """`count` frames 60 fs apart from Langevin dynamics with Stillinger-Weber (3 fs steps).

    The first 0.3 ps run at 5000 K, to melt the crystal, and the next 0.3 ps at `temperature`,
    at 0.92-1.04 of the diamond volume.
    """
    atoms = diamond(cell)
    atoms.set_cell(atoms.cell * rng.uniform(0.92, 1.04) ** (1 / 3), scale_atoms=True)
    rattle(atoms, 0.05, rng)
    atoms.calc = stillinger_weber()
    md = Langevin(atoms, 3 * units.fs, temperature_K=5000.0, friction=0.02 / units.fs, rng=rng, fixcm=False)
    md.run(100)
    md.set_temperature(temperature_K=temperature)
    md.run(80)
    frames = []
    for _ in range(count):
        md.run(20)
        frames.append(Atoms("Si" * len(atoms), positions=atoms.positions, cell=atoms.cell, pbc=True))
    return frames


def sample_hot(cell: str, count: int, rng) -> list[Atoms]:
    """`count` frames, the temperatures in turn."""
    n = min(len(TEMPERATURES), count)
    runs = [hot_trajectory(cell, TEMPERATURES[i], len(range(i, count, n)), rng) for i in range(n)]
    return [runs[i % n][i // n] for i in range(count)]


def sample_part(group: str, cell: str, split: str, cache: Path) -> list[Atoms]:
    """The frames of one group, cell type and file, with their own seed.

    They are kept in the cache, as molecular dynamics need not repeat bit for bit.
    """
    number = ("train", "test").index(split)
    count = PLAN[group, cell][number]
    path = cache / f"frames-{SEED}-{group}-{cell}-{split}-{count}.xyz"
    if path.exists() or not count:
        return read(path, ":") if count else []
    rng = np.random.default_rng([SEED, number, *f"{group} {cell}".encode()])
    if group == "hot":
        frames = sample_hot(cell, count, rng)
    else:
        frames = [SAMPLERS[group](cell, rng) for _ in range(count)]
    for atoms in frames:
        atoms.wrap()
        atoms.info = {"config_type": group, "cell_type": cell, "split": split}
    write(path.with_suffix(".tmp"), frames, format="extxyz")
    path.with_suffix(".tmp").replace(path)
    return read(path, ":")  # as rounded there, so that a label belongs to what the files hold


def sample_all(cache: Path) -> list[Atoms]:
    """Every frame of both files, interleaved so that any leading part is balanced.

    The 32-atom cells, each as dear as some twenty small ones, come last.
    """
    ranked = []
    for group, cell in PLAN:
        for split in ("train", "test"):
            frames = sample_part(group, cell, split, cache)
            late = cell == "bcc32"
            ranked += [(late + (i + 0.5) / len(frames), atoms) for i, atoms in enumerate(frames)]
    return [atoms for _, atoms in sorted(ranked, key=lambda item: item[0])]


SAMPLERS = {"rattle": sample_rattle, "strain": sample_strain, "vacancy": sample_vacancy}


# ---------------------------------------------------------------- labelling


def kpoints(cell: str, density: int = DENSITY) -> np.ndarray:
    """k-points (in units of the reciprocal vectors) and weights, one of each pair k, -k.

    They are (2 pi / a) n / (2 density), n three odd numbers: a half-shifted density^3 mesh of the
    cubic cell. An even density folds evenly into every cell type, so that all share one sampling.
    """
    odd = np.arange(1, 4 * density, 2)
    grid = np.stack(np.meshgrid(odd, odd, odd), axis=-1).reshape(-1, 3)
    unit = 4 * density  # in whole numbers: the primitive vectors hold halves
    vectors = np.rint(2 * diamond(cell).cell.array / LATTICE_CONSTANT).astype(int)
    folded = np.unique(grid @ vectors.T % unit, axis=0)
    pairs = Counter(min(tuple(k), tuple(-k % unit)) for k in folded)
    return np.array([[*np.array(k) / unit, weight] for k, weight in sorted(pairs.items())])


def pw_input(atoms: Atoms, pseudo_dir: str, points, ecut=ECUT, beta=0.7) -> str:
    def rows(array, prefix=""):
        return "\n".join(prefix + " ".join(f"{x:.8f}" for x in row) for row in array)

    return INPUT.format(
        pseudo_dir=pseudo_dir,
        nat=len(atoms),
        ecut=ecut,
        degauss=DEGAUSS,
        conv_thr=CONV_THR,
        beta=beta,
        pseudo=PSEUDO,
        cell=rows(atoms.cell.array),
        positions=rows(atoms.positions, "Si "),
        kpoints="\n".join([str(len(points)), rows(points)]),
    )


def parse_xml(path: Path, natoms: int) -> dict:
    """Energy (eV), forces (eV/A) and stress (eV/A^3, Voigt) of a converged run; else an error."""
    output = ET.parse(path).getroot().find("output")
    if output.findtext("convergence_info/scf_conv/convergence_achieved").strip() != "true":
        raise RuntimeError("the SCF did not converge")

    def numbers(tag, shape):
        return np.array(output.findtext(tag).split(), float).reshape(shape)

    stress = -numbers("stress", (3, 3)) * units.Hartree / units.Bohr**3
    stress = (stress + stress.T) / 2
    label = {
        "energy": float(output.findtext("total_energy/etot")) * units.Hartree,
        "forces": (numbers("forces", (natoms, 3)) * units.Hartree / units.Bohr).tolist(),
        "stress": [stress[i] for i in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))],
    }
    if not all(np.isfinite(value).all() for value in map(np.array, label.values())):
        raise RuntimeError("a label is not finite")
    return label


def run_pw(text: str, natoms: int, command: str) -> dict:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "pw.in").write_text(text)
        done = subprocess.run(
            [command, "-in", "pw.in"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMPI_MCA_ess_singleton_isolated": "1"},
            capture_output=True,
            text=True,
            timeout=3600,
        )
        if done.returncode or "JOB DONE" not in done.stdout:
            raise RuntimeError(f"pw.x stopped with status {done.returncode}: {done.stdout[-500:]}")
        try:
            label = parse_xml(Path(folder) / "out" / "si.save" / "data-file-schema.xml", natoms)
        except (OSError, AttributeError, ET.ParseError) as error:
            raise RuntimeError("pw.x left no complete output") from error
    label["seconds"] = round(time.perf_counter() - start, 2)
    return label


def label_frame(atoms: Atoms, args, deadline=math.inf, **settings) -> dict | None:
    """The frame's label, from the cache or, before the deadline, from pw.x (tried twice, the
    second time with more cautious mixing)."""
    settings.setdefault("points", kpoints(atoms.info["cell_type"]))
    text = pw_input(atoms, args.pseudo_dir, **settings)
    key = text.replace(args.pseudo_dir, "")
    path = args.cache / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".json")
    if path.exists():
        return json.loads(path.read_text())
    if time.monotonic() >= deadline:
        return None
    try:
        label = run_pw(text, len(atoms), args.pw)
    except RuntimeError:
        label = run_pw(pw_input(atoms, args.pseudo_dir, beta=0.3, **settings), len(atoms), args.pw)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(label))
    temporary.replace(path)
    return label


def label_all(frames: list[Atoms], args) -> list[Atoms]:
    """The frames that were labelled in the time given, in order; failures are named and dropped."""
    deadline = time.monotonic() + 60 * args.max_minutes
    done = {}
    with ThreadPoolExecutor(args.workers) as pool:
        futures = {pool.submit(label_frame, f, args, deadline): i for i, f in enumerate(frames)}
        for future in tqdm(as_completed(futures), total=len(frames), unit="frame"):
            index = futures[future]
            try:
                label = future.result()
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                tqdm.write(f"frame {index} {frames[index].info} dropped: {error}")
                continue
            if label is not None:
                done[index] = attach(frames[index], label)
    return [done[i] for i in sorted(done)]


def attach(atoms: Atoms, label: dict) -> Atoms:
    atoms = atoms.copy()
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=label["energy"],
        forces=np.array(label["forces"]),
        stress=np.array(label["stress"]),
    )
    return atoms


def write_files(frames: list[Atoms], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    files = {"train": [], "test": []}
    for atoms in frames:
        files[atoms.info.pop("split")].append(atoms)
    for name, chosen in files.items():
        temporary = out / f"{name}.xyz.tmp"
        write(temporary, chosen, format="extxyz")
        temporary.replace(out / f"{name}.xyz")
        print(f"{name}: {len(chosen)} frames")


# ---------------------------------------------------------------- checks


def check(args) -> None:
    """Convergence with cutoff and k-points, and stress against finite differences of energy."""
    frame = sample_strain("prim2", np.random.default_rng(SEED))
    frame.info["cell_type"] = "prim2"

    def report(name, atoms, **settings):
        label = label_frame(atoms, args, **settings)
        forces, stress = np.array(label["forces"]), np.array(label["stress"]) / units.GPa
        print(
            f"{name:28s} E/N {label['energy'] / len(atoms):13.6f} eV  F0 {forces[0].round(5)} eV/A"
            f"  stress {stress.round(3)} GPa  {label['seconds']} s",
            flush=True,
        )
        return label

    for ecut in (20.0, 22.0, 30.0, 40.0):
        report(f"cutoff {ecut} Ry", frame, ecut=ecut)
    for density in (2, 3, 4):
        report(f"k-point density {density}", frame, points=kpoints("prim2", density))
    step = 0.002
    for i, j in ((0, 0), (1, 2)):
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = frame.copy()
            strained.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            energies.append(label_frame(strained, args)["energy"])
        slope = (energies[0] - energies[1]) / (2 * step) / frame.get_volume() / units.GPa
        print(f"stress {i}{j} by finite differences at fixed cutoff: {slope:.3f} GPa", flush=True)
    for cell in CELLS:
        perfect = diamond(cell)
        perfect.info["cell_type"] = cell
        report(f"perfect {cell}", perfect)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("examples/02_crystal"))
    parser.add_argument("--workers", type=int, default=1, help="pw.x processes at a time")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache/equipot/silicon")
    parser.add_argument("--pw", default="pw.x", help="the pw.x executable")
    parser.add_argument("--pseudo-dir", default="/usr/share/espresso/pseudo")
    parser.add_argument("--max-minutes", type=float, default=math.inf)
    parser.add_argument("--check", action="store_true", help="measure convergence, write nothing")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    if args.check:
        check(args)
    else:
        write_files(label_all(sample_all(args.cache), args), args.out)


if __name__ == "__main__":
    main()
