"""Fine-tuning of a pretrained model against training from scratch, on the same frames, for the same time.

    scripts/benchmark fine-tuning NAME TRAIN TEST --model 7net-0.ckpt [--sizes 10 30 100] [KEY=VALUE ...]

The frames of TRAIN are shuffled; the first N are all that is known, and a fifth of them, drawn at random, is
the validation set. configs/fine_tune.yaml is taken as it is, but for the paths. Then a model is trained from
scratch with --scratch, for as many epochs as take the same processor time (measured before, on the same
frames); KEY=VALUE changes that recipe alone. Both are tested on --test-frames frames of TEST.
OUTPUT/results.json, which other names are added to, and OUTPUT/fine_tuning.svg are written after every
training; what is in the former is not run again.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import ase.io
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich.console import Console
from rich.table import Table

from equipot.config import Config, load_config
from equipot.errors import EquipotError
from equipot.evaluation.metrics import summary
from equipot.evaluation.run import evaluate
from equipot.files import atomic_write, write_json
from equipot.training.run import train

CONFIGS = Path(__file__).parents[2] / "configs"
_PILOT_FRAMES = 800  # of a training whose time, less that of two epochs, says what an epoch takes
_STYLES = {"fine-tuned": ("#0072B2", "o"), "from scratch": ("#D55E00", "s")}


def draw(source: Path, test: Path, size: int, test_frames: int, folder: Path) -> tuple[Path, Path]:
    """The files of ``size`` training frames and of the test frames; larger sets contain the smaller ones."""
    frames = ase.io.read(source, ":")
    order = np.random.default_rng(0).permutation(len(frames))[:size]
    tests = ase.io.read(test, ":")
    chosen = np.unique(np.linspace(0, len(tests) - 1, min(test_frames, len(tests))).astype(int))
    paths = folder / f"train_{size}.xyz", folder / "test.xyz"
    for path, part in zip(paths, ([frames[i] for i in order], [tests[i] for i in chosen]), strict=True):
        ase.io.write(path, part, format="extxyz")
    return paths


def timed(config: Config) -> tuple[Path, float]:
    """The run directory of a training, and the processor time that it took."""
    start = time.process_time()
    run = train(config, overwrite=True).directory
    return run, time.process_time() - start


def errors_on(model: Path, test: Path) -> dict[str, float]:
    """Errors of a model, in eV and Å."""
    return summary(evaluate(model, [test]).comparison)


def fine_tune(arguments: argparse.Namespace, train_file: Path, test_file: Path, run: Path) -> dict:
    """A fine-tuning with the recipe as it is: errors, also on the replay frames, and processor time."""
    paths = [f"data.train={train_file}", "data.test=null", f"fine_tune.model={arguments.model}"]
    config = load_config(CONFIGS / "fine_tune.yaml", [*paths, f"run.directory={run}"])
    run, seconds = timed(config)
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    replay = json.loads((run / "evaluation" / "replay.json").read_text(encoding="utf-8"))
    groups = {when: replay[when]["groups"] for when in ("before", "after")}
    return {
        "epochs": metrics["epochs"],
        "processor_seconds": seconds,
        "test": errors_on(run, test_file),
        "replay": groups,
    }


def from_scratch(
    arguments: argparse.Namespace, train_file: Path, test_file: Path, run: Path, frames: int, seconds: float
) -> dict:
    """A training from scratch on ``frames`` frames that takes ``seconds`` of processor time."""
    fixed = [f"data.train={train_file}", "data.test=null", "data.validation=0.2", f"run.directory={run}"]

    def config(epochs: int) -> Config:
        return load_config(arguments.scratch, [*fixed, *arguments.overrides, f"training.epochs={epochs}"])

    pilots = 2, 2 + max(4, round(_PILOT_FRAMES / frames))
    first, second = (timed(config(epochs))[1] for epochs in pilots)
    epoch = (second - first) / (pilots[1] - pilots[0])
    epochs = max(2, round((seconds - first) / epoch) + pilots[0])
    run, taken = timed(config(epochs))
    return {"epochs": epochs, "processor_seconds": taken, "test": errors_on(run, test_file)}


def tables(results: list[dict]) -> list[Table]:
    """Test errors, and those on the replay frames."""
    right = {"justify": "right"}
    test = Table(title="Test errors, MAE", title_justify="left")
    for name in ("data", "frames", "model", "epochs", "CPU s", "forces meV/Å", "energy meV/atom"):
        test.add_column(name, **right)
    replay = Table(title="Replay frames that were not trained on, MAE before → after", title_justify="left")
    for name in ("data", "frames", "forces meV/Å", "energy meV/atom"):
        replay.add_column(name, **right)
    for row in results:
        errors = [f"{1e3 * row['test'][f'{q}_mae']:.1f}" for q in ("forces", "energy")]
        facts = [f"{row[key]:.0f}" if key in row else "" for key in ("epochs", "processor_seconds")]
        test.add_row(row["data"], str(row["frames"]), row["model"], *facts, *errors)
        if "replay" in row:
            groups = [row["replay"][when]["not in the loss"] for when in ("before", "after")]
            pairs = [[f"{1e3 * g[f'{q}_mae']:.1f}" for g in groups] for q in ("forces", "energy")]
            replay.add_row(row["data"], str(row["frames"]), *(" → ".join(pair) for pair in pairs))
    return [test, replay]


def plot(results: list[dict], path: Path) -> None:
    """A column for each data set: errors of forces above, of energies below."""
    names = list(dict.fromkeys(row["data"] for row in results))
    figure = Figure(figsize=(1.0 + 3.4 * len(names), 5.6), layout="constrained")
    panels = figure.subplots(2, len(names), squeeze=False, sharex="col")
    for column, name in enumerate(names):
        rows = [row for row in results if row["data"] == name]
        for axes, (quantity, unit) in zip(
            panels[:, column], (("forces", "meV/Å"), ("energy", "meV/atom")), strict=True
        ):
            for model, (color, marker) in _STYLES.items():
                points = sorted(
                    (r["frames"], 1e3 * r["test"][f"{quantity}_mae"]) for r in rows if r["model"] == model
                )
                if points:
                    axes.plot(
                        *zip(*points, strict=True), color=color, marker=marker, markersize=5, label=model
                    )
            imported = [1e3 * r["test"]["forces_mae"] for r in rows if r["model"] == "as imported"]
            if imported and quantity == "forces":
                axes.axhline(imported[0], color="0.5", linestyle="--", linewidth=1, label="as imported")
            axes.set(xscale="log", yscale="log", ylabel=f"{quantity} MAE ({unit})")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            sizes = sorted({r["frames"] for r in rows if r["frames"]})
            axes.set_xticks(sizes, map(str, sizes))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.grid(alpha=0.25, linewidth=0.6)
        panels[0][column].set_title(name)
        panels[0][column].legend(frameon=False, fontsize=9)
        panels[1][column].set_xlabel("frames")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def main(arguments: argparse.Namespace) -> list[dict]:
    """Everything the command does; the results of all names."""
    kept, console = arguments.output / "results.json", Console()
    arguments.output.mkdir(parents=True, exist_ok=True)
    results = json.loads(kept.read_text(encoding="utf-8"))["results"] if kept.exists() else []
    known = {(row["data"], row["frames"], row["model"]): row for row in results}

    def add(frames: int, model: str, row: dict) -> dict:
        results.append({"data": arguments.name, "frames": frames, "model": model, **row})
        write_json(kept, {"results": results})
        plot(results, arguments.output / "fine_tuning.svg")
        return results[-1]

    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.sizes:
            files = draw(arguments.train, arguments.test, size, arguments.test_frames, Path(folder))
            if (arguments.name, 0, "as imported") not in known and size == arguments.sizes[0]:
                add(0, "as imported", {"test": errors_on(arguments.model, files[1])})
            runs = arguments.output / "runs"
            tuned = known.get((arguments.name, size, "fine-tuned"))
            if tuned is None:
                tuned = add(
                    size, "fine-tuned", fine_tune(arguments, *files, runs / f"{arguments.name}_{size}")
                )
            if (arguments.name, size, "from scratch") not in known:
                run, seconds = runs / f"{arguments.name}_{size}_scratch", tuned["processor_seconds"]
                add(size, "from scratch", from_scratch(arguments, *files, run, size, seconds))
    for table in tables(results):
        console.print(table)
    console.print(f"Wrote {kept} and {arguments.output / 'fine_tuning.svg'}")
    return results


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="fine_tuning"
    )
    parser.add_argument("name", metavar="NAME", help="of the data, in the table and the plot")
    parser.add_argument("train", type=Path, metavar="TRAIN", help="labelled frames, any file ASE reads")
    parser.add_argument("test", type=Path, metavar="TEST", help="labelled frames to test on")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe from scratch"
    )
    parser.add_argument("--model", type=Path, required=True, help="what to fine-tune")
    parser.add_argument(
        "--scratch", type=Path, default=CONFIGS / "crystal_nequip_small.yaml", metavar="CONFIG"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--test-frames", type=int, default=25, help="of TEST, evenly over the file (25)")
    parser.add_argument("--output", type=Path, default=Path("fine_tuning"))
    return parser.parse_intermixed_args(argv)


if __name__ == "__main__":
    try:
        main(parse())
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
