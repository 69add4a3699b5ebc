"""Does denoising help a potential with few labels, and does it make structures?

    scripts/benchmark denoising FRAMES [--other FILE] [--sizes 10 50] [--rates 0.005 0.015] [--output DIR]

FRAMES are shuffled: 50 are the test set, 50 the validation set, the others are what is to be trained on.
configs/denoise_nequip.yaml learns from all of these, without labels. Then the first N of them, with labels,
train configs/molecule_nequip_small.yaml from scratch, and configs/denoised_potential.yaml from what has been
learnt: the same network for as many steps, at each of --rates, of which the validation set (its first 20
frames) chooses. The test set is evaluated once for each N, and the frames of --other with it. Last,
structures are made of noisy test frames and their bonds compared with those of the data. OUTPUT/results.json
has everything; what is in it is not run again.
"""

import argparse
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.neighborlist import natural_cutoffs, neighbor_list
from rich.console import Console
from rich.table import Table

from equipot.config import load_config
from equipot.deploy.export import deploy
from equipot.errors import EquipotError
from equipot.evaluation.metrics import summary
from equipot.evaluation.run import evaluate
from equipot.files import read_json, write_json
from equipot.integrations.denoise import denoise
from equipot.integrations.denoise_settings import DenoiseSettings
from equipot.run_directory import RunDirectory
from equipot.training.run import AUTO, TrainResult, train
from equipot.training.stopping import INTERRUPTED

CONFIGS = Path(__file__).parents[2] / "configs"
_HELD_OUT, _VALIDATED = 50, 20
_STARTS = {"from scratch": "molecule_nequip_small.yaml", "denoised": "denoised_potential.yaml"}
_SIGMAS = 0.1, 0.2, 0.3, 0.5  # Å


def split(source: Path, sizes: list[int], folder: Path) -> dict[str, Path]:
    """The files of test, validation and training frames; smaller training sets are the first of these."""
    frames = ase.io.read(source, ":")
    shuffled = [frames[i] for i in np.random.default_rng(0).permutation(len(frames))]
    pool = shuffled[2 * _HELD_OUT :]
    parts = {
        "test": shuffled[:_HELD_OUT],
        "validation": shuffled[_HELD_OUT : 2 * _HELD_OUT],
        "few": shuffled[_HELD_OUT : _HELD_OUT + _VALIDATED],
        "pool": pool,
        **{str(size): pool[:size] for size in sizes},
    }
    for name, part in parts.items():
        ase.io.write(folder / f"{name}.xyz", part, format="extxyz")
    return {name: folder / f"{name}.xyz" for name in parts}


def pretrain(files: dict[str, Path], run: Path, overrides: list[str]) -> None:
    """On noise; a training that is done is left alone."""
    data = [f"data.train={files['pool']}", f"data.validation={files['validation']}"]
    config = load_config(CONFIGS / "denoise_nequip.yaml", [*data, f"run.directory={run}", *overrides])
    whole(train(config, AUTO))


def whole(result: TrainResult) -> TrainResult:
    """Nothing follows from a training that was interrupted."""
    if result.stopped == INTERRUPTED:
        sys.exit(130)
    return result


def fit(start: str, size: int, rate: float, files: dict[str, Path], folder: Path, epochs: int) -> dict:
    """A potential of ``size`` labelled frames: errors on the validation set, processor time."""
    run = folder / f"{start.replace(' ', '_')}_{size}_{rate:g}"
    options = [f"data.train={files[str(size)]}", f"data.validation={files['few']}", "data.test=null"]
    options += [f"training.epochs={epochs}", f"training.learning_rate={rate}", f"run.directory={run}"]
    if start == "denoised":
        options.append(f"fine_tune.model={folder / 'denoise'}")
    began = time.process_time()
    result = whole(train(load_config(CONFIGS / _STARTS[start], options), overwrite=True))
    seconds = time.process_time() - began
    return {
        "start": start,
        "frames": size,
        "rate": rate,
        "epochs": epochs,
        "processor_seconds": seconds,
        "run": run.name,
        "validation": result.metrics["validation"],
    }


def tested(row: dict, files: dict[str, Path], other: Path | None, folder: Path) -> dict[str, dict]:
    """Errors of a potential on the test set, and on other frames."""
    sets = {"test": files["test"]} | ({} if other is None else {"other": other})
    return {name: summary(evaluate(folder / row["run"], [file]).comparison) for name, file in sets.items()}


def bonds_of(atoms: Atoms) -> set[tuple[int, int]]:
    """Pairs closer than 1.15 times the sum of their covalent radii."""
    pairs = zip(*neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15)), strict=True)
    return {(int(i), int(j)) for i, j in pairs if i < j}


def structures(model: Path, files: dict[str, Path], number: int = 10) -> list[dict]:
    """Structures made of noisy test frames: how many have the bonds of the data, and how long these are."""
    data = ase.io.read(files["pool"], ":")
    tests = ase.io.read(files["test"], f":{number}")
    bonds = sorted(bonds_of(data[0]))
    i, j = np.array(bonds).T

    def lengths(atoms: Atoms) -> np.ndarray:
        return np.linalg.norm(atoms.positions[i] - atoms.positions[j], axis=1)

    of_data = np.array([lengths(atoms) for atoms in data])
    mean = of_data.mean(axis=0)
    rows = [{"sigma": None, "rms": float(np.sqrt(((of_data - mean) ** 2).mean()))}]
    for sigma in _SIGMAS:
        row = {"sigma": sigma, "number": number, "converged": 0, "right": 0, "steps": []}
        off = []
        for seed, atoms in enumerate(tests):
            try:
                (found,) = denoise(atoms, model, DenoiseSettings(sigma=sigma, seed=seed))
            except EquipotError as error:
                print(f"{sigma:g} Å, frame {seed}: {error}")
                continue
            row["converged"] += found.converged
            if bonds_of(found.atoms) == set(bonds):
                row["right"] += 1
                off.append(lengths(found.atoms) - mean)
                row["steps"].append(len(found.rms) - 1)
        rows.append(row | {"rms": float(np.sqrt(np.mean(np.square(off)))) if off else None})
    return rows


def tables(results: dict) -> list[Table]:
    """Errors of potentials, and structures."""
    right = {"justify": "right"}
    errors = Table(title="RMSE, forces meV/Å and energy meV/atom", title_justify="left")
    for name in ("frames", "start", "rate", "epochs", "CPU s", "validation", "test", "other"):
        errors.add_column(name, **right)
    for row in results["fits"]:
        pairs = [row.get(name) for name in ("validation", "test", "other")]
        said = [f"{1e3 * p['forces_rmse']:.0f} / {1e3 * p['energy_rmse']:.1f}" if p else "" for p in pairs]
        facts = str(row["frames"]), row["start"], f"{row['rate']:g}", str(row["epochs"])
        errors.add_row(*facts, f"{row['processor_seconds']:.0f}", *said)
    made = Table(title="Structures from noise", title_justify="left")
    for name in (
        "sigma Å",
        "converged",
        "with the data's bonds",
        "bond lengths, RMS off the data's mean Å",
        "steps",
    ):
        made.add_column(name, **right)
    for row in results.get("structures", []):
        rms = "" if row["rms"] is None else f"{row['rms']:.4f}"
        if row["sigma"] is None:
            made.add_row("data", "", "", rms, "")
        else:
            counts = (f"{row[key]} of {row['number']}" for key in ("converged", "right"))
            steps = f"{np.median(row['steps']):.0f}" if row["steps"] else ""
            made.add_row(f"{row['sigma']:g}", *counts, rms, steps)
    return [errors, made]


def main(arguments: argparse.Namespace) -> dict:
    """Whatever is not in OUTPUT/results.json yet; the content of that file."""
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    files, target = split(arguments.frames, arguments.sizes, folder), folder / "results.json"
    results = read_json(target) if target.is_file() else {"fits": []}
    pretrain(files, folder / "denoise", arguments.overrides)
    for size in arguments.sizes:
        of_size = [row for row in results["fits"] if row["frames"] == size]
        for start, rate in ((start, rate) for start in _STARTS for rate in arguments.rates):
            if not any((row["start"], row["rate"]) == (start, rate) for row in of_size):
                of_size.append(fit(start, size, rate, files, folder, max(2, arguments.steps * 5 // size)))
                results["fits"].append(of_size[-1])
                write_json(target, results)
        for start in _STARTS:
            own = [row for row in of_size if row["start"] == start]
            best = min(own, key=lambda row: row["validation"]["loss"])
            if not any("test" in row for row in own):
                best |= tested(best, files, arguments.other, folder)
                write_json(target, results)
    if "structures" not in results:
        deploy(RunDirectory(folder / "denoise").best, folder / "denoise.pt")
        results["structures"] = structures(folder / "denoise.pt", files)
        write_json(target, results)
    Console(width=120).print(*tables(results))
    return results


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("frames", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the training on noise")
    parser.add_argument("--other", type=Path, help="further frames to test on")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10, 50], help="none: structures alone")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.005, 0.015])
    parser.add_argument("--steps", type=int, default=500, help="of each potential, of five frames")
    parser.add_argument("--output", type=Path, default=Path("runs/denoising"))
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    try:
        main(parse())
    except EquipotError as error:
        sys.exit(f"Error: {error}")
