"""Data efficiency: test errors against training frames, for NequIP and Allegro and several l_max.

    scripts/learning_curves TRAIN.xyz [KEY=VALUE ...] --test TEST.xyz --minutes 2

TRAIN is shuffled once. Its first frames are held out for the test, the next ones are the validation set,
and training sets are taken from the rest, each one containing the smaller ones. All trainings have the same
validation frames, the same recipe (molecules.yaml or, where frames are periodic and have stresses,
crystals.yaml, in scripts/benchmarks/accuracy; KEY=VALUE changes it, as in `equipot train`:
model.channels=64) and the same number of optimizer steps or, with --minutes, the same processor
time. Frames of small sets are repeated, so that epochs are equally long. --seeds N repeats everything with
other training frames and other initial weights. Each training has a folder of its own in OUTPUT/runs. Run
again, the script skips what is finished and goes on with what was interrupted. OUTPUT/results.json and
OUTPUT/learning_curves.png are written after every training.
"""

import argparse
import math
from functools import partial
from pathlib import Path

import numpy as np
from ase import Atoms
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from rich.console import Console
from rich.table import Table
from trainings import (
    COLORS,
    NAMES,
    check_arguments,
    configure,
    error_axis,
    for_minutes,
    is_done,
    known_everywhere,
    named_tests,
    parser_of,
    positive,
    read_pool,
    run_one,
    run_script,
    write_frames,
)

from equipot.config import Config
from equipot.errors import ConfigError, DataError
from equipot.files import atomic_write, write_json
from equipot.quantities import QUANTITIES

EPOCH_FRAMES = 400  # frames seen between two validations, whatever the size of the training set
SIZES = 10, 25, 50, 100, 200, 400
_MARKERS, _LINES = "os^Dv", {"nequip": "-", "allegro": "--"}


def write_sets(pool: list[Atoms], sizes: list[int], arguments: argparse.Namespace) -> None:
    """train_N.xyz for each N of ``sizes``; and, from other frames, of each further seed.

    Raises:
        DataError: too few frames; or the folder holds another split.
    """
    if len(pool) < max(sizes):
        raise DataError(
            f"{arguments.train}: {arguments.held_out} frames held out and {arguments.validation} for "
            f"validation leave {len(pool)}, fewer than the largest of --sizes, {max(sizes)}."
        )
    for seed in range(arguments.seeds):
        order = np.arange(len(pool))
        if seed:
            order = np.random.default_rng([arguments.seed, seed]).permutation(order)
        for size in sizes:
            chosen = np.tile(order[:size], max(1, round(EPOCH_FRAMES / size)))
            write_frames(arguments.output / "data" / f"{_set(size, seed)}.xyz", [pool[i] for i in chosen])


def _set(size: int, seed: int) -> str:
    return f"train_{size}" + (f"_seed{seed}" if seed else "")


def for_steps(steps: int, size: int, config: Config) -> list[str]:
    """Epochs, two at least, of about ``steps`` steps."""
    batch = config.training.batch_size
    if not isinstance(batch, int):
        raise ConfigError("--steps needs a training.batch_size in frames. Give --minutes, or a number.")
    epochs = max(2, round(steps / math.ceil(size * max(1, round(EPOCH_FRAMES / size)) / batch)))
    return [f"training.epochs={epochs}"]


def configurations(arguments: argparse.Namespace, sizes: list[int]) -> list[tuple[dict, Config]]:
    """What there is to train, small sets first: model, l_max, frames and seed, and its configuration."""
    found = []
    for size in sizes:
        for seed in range(arguments.seeds):
            for kind in arguments.models:
                for l_max in arguments.l_max:
                    name = f"{kind}_l{l_max}_n{size}" + (f"_seed{seed}" if seed else "")
                    budget = partial(for_steps, arguments.steps, size)
                    if arguments.minutes is not None:
                        budget = partial(for_minutes, arguments.minutes, arguments.output / "budgets.json")
                    changes = [f"model.type={kind}", f"model.l_max={l_max}", f"run.seed={seed}"]
                    what = {"model": kind, "l_max": l_max, "frames": size, "seed": seed}
                    found.append((what, configure(arguments, name, _set(size, seed), changes, budget)))
    return found


def slope(sizes: list[int], errors: list[float]) -> float | None:
    """b of the least-squares fit log error = a + b log size; None for fewer than two sizes."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(errors), 1)[0])


def summarize(runs: list[dict], error: str) -> dict[str, dict[str, dict[str, dict]]]:
    """For each test set, quantity and kind of model: sizes, means over seeds, their spread, the slope."""
    curves: dict[str, dict[str, dict[str, dict]]] = {}
    kinds = dict.fromkeys((run["model"], run["l_max"]) for run in runs)
    for test in runs[0]["errors"]:
        for quantity in known_everywhere(runs, test, error):
            for kind in kinds:
                chosen = [run for run in runs if (run["model"], run["l_max"]) == kind]
                sizes = sorted({run["frames"] for run in chosen})
                values = [
                    [run["errors"][test][f"{quantity}_{error}"] for run in chosen if run["frames"] == size]
                    for size in sizes
                ]
                means = [float(np.mean(of_size)) for of_size in values]
                curve = {"frames": sizes, error: means, "slope": slope(sizes, means)}
                curve["spread"] = [float(np.std(v, ddof=1)) if len(v) > 1 else None for v in values]
                of_kind = curves.setdefault(test, {}).setdefault(quantity, {})
                of_kind[f"{NAMES[kind[0]]}, l_max {kind[1]}"] = {"model": kind[0], "l_max": kind[1], **curve}
    return curves


def tables(curves: dict, error: str) -> list[Table]:
    """One for each test set and quantity: a row for each kind of model, a column for each size, the slope."""
    found = []
    for test, quantities in curves.items():
        for quantity, of_kind in quantities.items():
            sizes = sorted({size for curve in of_kind.values() for size in curve["frames"]})
            unit = QUANTITIES[quantity].reported[0].unit
            table = Table(title=f"{test}: {quantity} {error.upper()} ({unit})", title_justify="left")
            for column in ("model", *map(str, sizes), "slope"):
                table.add_column(column, justify="right")
            for label, curve in of_kind.items():
                cells = dict(
                    zip(curve["frames"], zip(curve[error], curve["spread"], strict=True), strict=True)
                )
                row = [_with_spread(*cells[size]) if size in cells else "" for size in sizes]
                table.add_row(label, *row, _two_digits(curve["slope"]))
            found.append(table)
    return found


def _with_spread(mean: float, spread: float | None) -> str:
    return f"{mean:.3g}" if spread is None else f"{mean:.3g} ± {spread:.2g}"


def plot(curves: dict, path: Path, error: str) -> None:
    """A column for each test set, a row for each quantity, both axes logarithmic."""
    quantities = list(dict.fromkeys(quantity for found in curves.values() for quantity in found))
    shape = len(quantities), len(curves)
    figure = Figure(figsize=(1.0 + 4.4 * shape[1], 0.9 + 3.1 * shape[0]), layout="constrained")
    panels = figure.subplots(*shape, squeeze=False, sharey="row")
    for column, (test, found) in enumerate(curves.items()):
        panels[0][column].set_title(test)
        for row, quantity in enumerate(quantities):
            axes = panels[row][column]
            axes.set_xscale("log")
            error_axis(axes, quantity, error)
            if quantity not in found:
                continue
            for label, curve in found[quantity].items():
                axes.errorbar(
                    curve["frames"], curve[error], [spread or 0.0 for spread in curve["spread"]], label=label,
                    color=COLORS[curve["l_max"]], linestyle=_LINES[curve["model"]],
                    marker=_MARKERS[curve["l_max"]], markersize=5, capsize=2,
                )  # fmt: skip
            sizes = sorted({size for curve in found[quantity].values() for size in curve["frames"]})
            axes.set_xticks(sizes, map(str, sizes))
            axes.xaxis.set_minor_locator(NullLocator())
    for axes in panels[-1]:
        axes.set_xlabel("training frames")
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, handlelength=4, frameon=False, fontsize=8
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150)


def _two_digits(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "−")


def main(arguments: argparse.Namespace) -> dict:
    """Everything the command does; the curves by test set, quantity and kind of model."""
    output, console = arguments.output, Console()
    pool = read_pool(arguments)
    sizes = sorted(set(arguments.sizes or [size for size in SIZES if size <= len(pool)] or SIZES[:1]))
    write_sets(pool, sizes, arguments)
    tests, todo = named_tests(arguments), configurations(arguments, sizes)
    budget = {"minutes": arguments.minutes} if arguments.minutes else {"steps": arguments.steps}
    recipe = {
        "recipe": arguments.recipe.name,
        **budget,
        "overrides": arguments.overrides,
        "seed": arguments.seed,
    }
    runs: list[dict] = []
    console.print(f"{len(todo)} trainings by {arguments.recipe}", markup=False)
    for number, (what, config) in enumerate(todo, 1):
        console.print(f"\n[{number}/{len(todo)}] {config.run.directory.name}", markup=False)
        news = number == len(todo) or not is_done(config)
        runs.append({**what, **run_one(config, tests)})
        if news:
            curves = summarize(runs, arguments.error)
            write_json(output / "results.json", {**recipe, "curves": curves, "runs": runs})
            plot(curves, output / "learning_curves.png", arguments.error)
    for table in tables(curves, arguments.error):
        console.print(table)
    seconds = [run["processor_seconds"] for run in runs]
    console.print(
        f"Processor time: {min(seconds):.0f} to {max(seconds):.0f} s each, {sum(seconds):.0f} s of all.\n"
        f"Wrote {output / 'results.json'} and {output / 'learning_curves.png'}"
    )
    return curves


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line; without a test set there would be nothing to draw."""
    parser = parser_of(__doc__, "learning_curves")
    parser.add_argument(
        "--sizes", type=positive(int), nargs="+", help=f"training frames ({' '.join(map(str, SIZES))})"
    )
    parser.add_argument("--models", choices=NAMES, nargs="+", default=list(NAMES), help="(both)")
    parser.add_argument("--l-max", type=int, nargs="+", default=[0, 1, 2, 3], metavar="L", help="(0 1 2 3)")
    parser.add_argument(
        "--steps", type=positive(int), default=4000, help="optimizer steps of each training (4000)"
    )
    parser.add_argument(
        "--minutes", type=positive(float), help="of processor time for each training, in place of --steps"
    )
    parser.add_argument("--seeds", type=positive(int), default=1, metavar="N", help="repetitions (1)")
    arguments = parser.parse_intermixed_args(argv)
    check_arguments(parser, arguments, ("model.type", "model.l_max", "run.seed"))
    return arguments


if __name__ == "__main__":
    run_script(main, parse)
