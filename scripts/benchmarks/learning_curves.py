"""Data efficiency: force error against the number of training frames, for several l_max.

    scripts/learning_curves TRAIN.xyz [KEY=VALUE ...] --test TEST.xyz --steps 4000

TRAIN is shuffled once. Its first frames are held out for the test, the next ones are the validation set,
and training sets are taken from the rest, each one containing the smaller ones. All trainings have the same
validation frames, the same recipe (scripts/benchmarks/accuracy/learning_curves.yaml; KEY=VALUE changes it, as
in `equipot train`: model.channels=64) and the same number of optimizer steps: frames of small sets are
repeated, so that epochs are equally long. Each training has a folder of its own in OUTPUT/runs. Run again,
the script skips what is finished and goes on with what was interrupted. OUTPUT/results.json and
OUTPUT/learning_curves.png are written after every training.
"""

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import ase.io
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from equipot.config import Config, load_config
from equipot.errors import ConfigError, DataError, EquipotError
from equipot.evaluation.metrics import error_rows
from equipot.evaluation.run import evaluate
from equipot.files import atomic_write, write_json
from equipot.run_directory import RunDirectory
from equipot.training.run import train
from equipot.training.stopping import INTERRUPTED

RECIPE = Path(__file__).parent / "accuracy" / "learning_curves.yaml"
# Set for each training from the options.
_FIXED = ("model.l_max", "data.train", "data.validation", "training.epochs", "run.directory")
EPOCH_FRAMES = 400  # frames seen between two validations, whatever the size of the training set
# Okabe and Ito's colors for the color-blind; markers tell the curves apart without color.
_STYLES = (("#000000", "o"), ("#E69F00", "s"), ("#0072B2", "^"), ("#D55E00", "D"), ("#009E73", "v"))


def split(file: Path, folder: Path, held_out: int, validation: int, sizes: list[int], seed: int) -> None:
    """Write held_out.xyz, validation.xyz and train_N.xyz for each N of ``sizes`` into ``folder``.

    Raises:
        DataError: too few frames; or the folder holds another split.
    """
    frames = ase.io.read(file, ":")
    pool = len(frames) - held_out - validation
    if pool < max(sizes):
        raise DataError(
            f"{file} has {len(frames)} frames; {held_out} held out and {validation} for validation leave "
            f"{pool}, fewer than the largest of --sizes, {max(sizes)}."
        )
    order = np.random.default_rng(seed).permutation(len(frames))
    parts = {"held_out": order[:held_out], "validation": order[held_out : held_out + validation]}
    for size in sizes:
        chosen = order[held_out + validation :][:size]
        parts[f"train_{size}"] = np.tile(chosen, max(1, round(EPOCH_FRAMES / size)))
    for name, indices in parts.items():
        if len(indices):
            _write_frames(folder / f"{name}.xyz", [frames[i] for i in indices])


def _write_frames(path: Path, frames: list) -> None:
    with atomic_write(path.with_suffix(".new.xyz")) as temporary:
        ase.io.write(temporary, frames, format="extxyz")
    new = path.with_suffix(".new.xyz")
    if path.exists() and path.read_bytes() != new.read_bytes():
        new.unlink()
        raise DataError(
            f"{path} holds other frames: it was made from another file, or with another --held-out, "
            "--validation or --seed. Choose another --output."
        )
    new.replace(path)


def configure(arguments: argparse.Namespace, l_max: int, size: int) -> Config:
    """The configuration of one training."""
    data, runs = arguments.output.absolute() / "data", arguments.output / "runs"
    fixed = [
        f"model.l_max={l_max}",
        f"data.train={data / f'train_{size}.xyz'}",
        f"data.validation={data / 'validation.xyz'}",
        f"run.directory={runs / f'l{l_max}_n{size}'}",
    ]
    config = load_config(RECIPE, [*arguments.overrides, *fixed])
    frames = size * max(1, round(EPOCH_FRAMES / size))
    epochs = max(2, round(arguments.steps / math.ceil(frames / config.training.batch_size)))
    return load_config(RECIPE, [*arguments.overrides, *fixed, f"training.epochs={epochs}"])


def run_one(config: Config, tests: dict[str, Path]) -> dict:
    """Train and evaluate, or read what was found before; errors in meV/atom and meV/Å.

    Raises:
        ConfigError: the folder holds a training with other settings.
        KeyboardInterrupt: the training was interrupted.
    """
    directory = RunDirectory(config.run.directory)
    if directory.config.exists() and directory.config.read_text(encoding="utf-8") != config.to_yaml():
        raise ConfigError(
            f"{directory.root} was trained with other settings (see its config.yaml): "
            "choose another --output, or remove that folder."
        )
    if not directory.metrics.exists() or _metrics(directory)["stopped"] == INTERRUPTED:
        resume = directory.root if directory.last.exists() else None
        if train(config, resume=resume, overwrite=True).stopped == INTERRUPTED:
            raise KeyboardInterrupt
    metrics = _metrics(directory)
    return {
        "l_max": config.model.l_max,
        "epochs": config.training.epochs,
        "best_epoch": metrics["best_epoch"],
        "training_seconds": metrics["training_seconds"],
        "errors": {name: errors_on(directory.root, file) for name, file in tests.items()},
    }


def errors_on(run: Path, file: Path) -> dict[str, float]:
    """Energy (meV/atom) and force (meV/Å) errors; kept in the run's folder by content of ``file``."""
    kept = run / "test_errors.json"
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if digest not in known:
        rows = error_rows(evaluate(run, [file]).comparison)[:2]
        known[digest] = {
            f"{row.quantity}_{kind}": getattr(row, kind) for row in rows for kind in ("mae", "rmse")
        }
        write_json(kept, known)
    return known[digest]


def _metrics(directory: RunDirectory) -> dict:
    return json.loads(directory.metrics.read_text(encoding="utf-8"))


def slope(sizes: list[int], errors: list[float]) -> float | None:
    """b of the least-squares fit log error = a + b log size; None for fewer than two sizes."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def summarize(runs: list[dict]) -> dict[str, dict[int, dict]]:
    """For each test set and l_max: sizes, force MAE (meV/Å) and their slope."""
    curves: dict[str, dict[int, dict]] = {}
    for test in runs[0]["errors"] if runs else ():
        for l_max in sorted({run["l_max"] for run in runs}):
            chosen = sorted((run for run in runs if run["l_max"] == l_max), key=lambda run: run["frames"])
            sizes = [run["frames"] for run in chosen]
            errors = [run["errors"][test]["forces_mae"] for run in chosen]
            curve = {"frames": sizes, "forces_mae": errors, "slope": slope(sizes, errors)}
            curves.setdefault(test, {})[l_max] = curve
    return curves


def print_tables(curves: dict[str, dict[int, dict]], console: Console) -> None:
    """One table per test set: a row for each l_max, a column for each size, the slope."""
    for test, of_l in curves.items():
        sizes = sorted({size for curve in of_l.values() for size in curve["frames"]})
        table = Table(title=f"{test}: force MAE (meV/Å)", title_justify="left")
        for column in ("l_max", *map(str, sizes), "slope"):
            table.add_column(column, justify="right")
        for l_max, curve in of_l.items():
            found = dict(zip(curve["frames"], curve["forces_mae"], strict=True))
            cells = [f"{found[size]:.1f}" if size in found else "" for size in sizes]
            table.add_row(str(l_max), *cells, _two_digits(curve["slope"]))
        console.print(table)


def plot(curves: dict[str, dict[int, dict]], path: Path) -> None:
    """A panel per test set, both axes logarithmic."""
    figure = Figure(figsize=(1.0 + 3.6 * len(curves), 4.3), layout="constrained")
    panels = figure.subplots(1, len(curves), squeeze=False, sharey=True)[0]
    for axes, (test, of_l) in zip(panels, curves.items(), strict=True):
        for l_max, curve in of_l.items():
            color, marker = _STYLES[l_max % len(_STYLES)]
            label = f"$l_\\mathrm{{max}}$ = {l_max}"
            if curve["slope"] is not None:
                label += f"   slope {_two_digits(curve['slope'])}"
            axes.plot(
                curve["frames"], curve["forces_mae"], color=color, marker=marker, markersize=5, label=label
            )
        sizes = sorted({size for curve in of_l.values() for size in curve["frames"]})
        axes.set(xscale="log", yscale="log", title=test, xlabel="training frames")
        axes.set_xticks(sizes, map(str, sizes))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    panels[0].set_ylabel("force MAE (meV/Å)")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=180)


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "−")


def main(arguments: argparse.Namespace) -> dict[str, dict[int, dict]]:
    """Everything the command does; the curves by test set and l_max."""
    output, console = arguments.output, Console()
    tests = {file.stem: file for file in arguments.test}
    if len(tests) < len(arguments.test):
        raise DataError("--test: two files have the same name; rename one, the results are listed by name.")
    for file in arguments.test:
        if not file.is_file():
            raise DataError(f"--test: no file '{file}'.")
    sizes = sorted(set(arguments.sizes))
    split(arguments.train, output / "data", arguments.held_out, arguments.validation, sizes, arguments.seed)
    if arguments.held_out:
        tests = {f"held-out frames of {arguments.train.stem}": output / "data" / "held_out.xyz", **tests}
    configs = {
        (l_max, size): configure(arguments, l_max, size) for size in sizes for l_max in arguments.l_max
    }
    runs: list[dict] = []
    for number, ((l_max, size), config) in enumerate(configs.items(), 1):
        console.print(f"\n[{number}/{len(configs)}] l_max {l_max}, {size} frames", markup=False)
        runs.append({"frames": size, **run_one(config, tests)})
        curves = summarize(runs)
        recipe = {"steps": arguments.steps, "overrides": arguments.overrides, "seed": arguments.seed}
        write_json(output / "results.json", {**recipe, "curves": curves, "runs": runs})
        plot(curves, output / "learning_curves.png")
    print_tables(curves, console)
    console.print(f"Wrote {output / 'results.json'} and {output / 'learning_curves.png'}")
    return curves


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; without a test set there would be nothing to draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="learning_curves"
    )
    parser.add_argument("train", type=Path, metavar="TRAIN", help="labelled frames, any file ASE reads")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--test", type=Path, action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 25, 50, 100, 200, 400])
    parser.add_argument("--l-max", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps of each training (4000)")
    parser.add_argument("--held-out", type=int, default=50, help="test frames taken from TRAIN (50)")
    parser.add_argument("--validation", type=int, default=50, help="validation frames taken from TRAIN (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the split (0)")
    parser.add_argument("--output", type=Path, default=Path("learning_curves"))
    arguments = parser.parse_intermixed_args(argv)
    if not arguments.held_out and not arguments.test:
        parser.error("give a --test file, or hold out some frames of TRAIN")
    fixed = [change for change in arguments.overrides if change.split("=")[0] in _FIXED]
    if fixed:
        parser.error(f"{fixed[0]}: set by the options for each training (--l-max, --steps, --output)")
    if min(*arguments.sizes, arguments.validation, arguments.steps) < 1 or arguments.held_out < 0:
        parser.error("--sizes, --validation and --steps must be 1 or more, --held-out 0 or more")
    return arguments


if __name__ == "__main__":
    try:
        main(parse())
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)
