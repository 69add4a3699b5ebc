"""What learning_curves.py and pareto.py share: sets of frames, budgets, trainings done once, their errors."""

import argparse
import hashlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from equipot.config import Config, load_config
from equipot.data.batching import BatchSampler, batch_loader
from equipot.errors import ConfigError, DataError, EquipotError
from equipot.evaluation.metrics import summary
from equipot.evaluation.run import evaluate
from equipot.files import atomic_write, read_json, write_json
from equipot.models.predict import predict
from equipot.quantities import QUANTITIES
from equipot.run_directory import RunDirectory
from equipot.training import monitor
from equipot.training.batches import budget_of
from equipot.training.preparation import prepare
from equipot.training.results import read_metrics
from equipot.training.run import train
from equipot.training.stopping import INTERRUPTED
from equipot.training.trial import Trial

RECIPES = Path(__file__).parent / "accuracy"
# What the recipes, which are NequIP's, change for another model.
OF_TYPE = {"nequip": (), "allegro": ("model.layers=2", "model.channels=16")}
NAMES = {"nequip": "NequIP", "allegro": "Allegro"}
# Set for each training.
FIXED = ("data.train", "data.validation", "training.epochs", "training.max_minutes", "run.directory")
COLORS = ("#000000", "#E69F00", "#0072B2", "#D55E00", "#009E73")  # of l_max; Okabe and Ito's
_TIMED_STEPS = 20
_MORE_EPOCHS = 1.5  # times those that there should be time for
# Part of an epoch is neither steps nor validation (docs/architecture.md, Lightning).
_OVERHEAD = 1.1


def parser_of(words: str, name: str) -> argparse.ArgumentParser:
    """Of the script of this ``name``, with the options that say on what, with which recipe and where."""
    parser = argparse.ArgumentParser(
        description=words, formatter_class=argparse.RawDescriptionHelpFormatter, prog=name
    )
    parser.add_argument("train", type=Path, metavar="TRAIN", help="labelled frames, any file ASE reads")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--test", type=Path, action="append", default=[], metavar="FILE", help="repeatable")
    for name, what in (("held-out", "test"), ("validation", "validation")):
        words = f"{what} frames taken from TRAIN (a tenth of it, at most 50)"
        parser.add_argument(
            f"--{name}", type=int if name == "held-out" else positive(int), metavar="N", help=words
        )
    words = "YAML (crystals.yaml or molecules.yaml in scripts/benchmarks/accuracy, by the data)"
    parser.add_argument("--recipe", type=Path, metavar="CONFIG", help=words)
    parser.add_argument("--error", choices=("mae", "rmse"), default="mae", help="in tables and plots (mae)")
    parser.add_argument("--seed", type=positive(int, or_zero=True), default=0, help="of the split (0)")
    parser.add_argument("--output", type=Path, default=Path(name), metavar="DIR")
    return parser


def run_script(main: Callable[[argparse.Namespace], object], parse: Callable[[], argparse.Namespace]) -> None:
    """What a script does, by processor time; errors that a user can mend are said without a traceback."""
    monitor.clock = time.process_time
    try:
        main(parse())
    except (EquipotError, OSError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def positive(kind: type, or_zero: bool = False) -> Callable[[str], float]:
    """The type of an option that is more than 0, or not less."""

    def read(text: str):
        value = kind(text)
        if not (0 < value < math.inf or (or_zero and value == 0)):
            least = "0 or more" if or_zero else "more than 0"
            raise argparse.ArgumentTypeError(f"must be {least}, found {text}")
        return value

    read.__name__ = kind.__name__
    return read


def check_arguments(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, fixed: Iterable[str]
) -> None:
    """Usage errors of these options; keys in ``fixed`` and `FIXED` may not be overridden."""
    if arguments.held_out == 0 and not arguments.test:
        parser.error("give a --test file, or hold out some frames of TRAIN")
    for change in arguments.overrides:
        if change.split("=")[0] in (*FIXED, *fixed):
            parser.error(f"{change}: set by the options for each training")
    if (arguments.held_out or 0) < 0:
        parser.error("--held-out must be 0 or more")


def read_pool(arguments: argparse.Namespace) -> list[Atoms]:
    """Shuffle TRAIN, write the held-out and the validation frames, choose the recipe; the other frames.

    Raises:
        DataError: too few frames; a test file that is missing, or has other elements; or the folder holds
            another split.
    """
    for file in arguments.test:
        if not file.is_file():
            raise DataError(f"--test: no file '{file}'.")
    if len({file.stem for file in arguments.test}) < len(arguments.test):
        raise DataError("--test: two files have the same name; rename one, the results are listed by name.")
    frames = ase.io.read(arguments.train, ":")
    known = {element for atoms in frames for element in atoms.symbols}
    for file in arguments.test:
        unknown = {element for atoms in ase.io.iread(file, ":") for element in atoms.symbols} - known
        if unknown:
            raise DataError(
                f"--test: {file} has {', '.join(sorted(unknown))}, which {arguments.train} does not have: no "
                "model knows an element that it was not trained on. Leave these frames out."
            )
    share = min(50, max(1, len(frames) // 10))
    for name in ("held_out", "validation"):
        if getattr(arguments, name) is None:
            setattr(arguments, name, share)
    taken = arguments.held_out + arguments.validation
    if len(frames) - taken < 1:
        raise DataError(
            f"{arguments.train} has {len(frames)} frames, and {taken} are for test and validation."
        )
    if arguments.recipe is None:
        crystals = all(atoms.pbc.all() for atoms in frames) and any(
            atoms.calc is not None and "stress" in atoms.calc.results for atoms in frames
        )
        arguments.recipe = RECIPES / ("crystals.yaml" if crystals else "molecules.yaml")
    shuffled = [frames[i] for i in np.random.default_rng(arguments.seed).permutation(len(frames))]
    data = arguments.output / "data"
    if arguments.held_out:
        write_frames(data / "held_out.xyz", shuffled[: arguments.held_out])
    write_frames(data / "validation.xyz", shuffled[arguments.held_out : taken])
    return shuffled[taken:]


def write_frames(path: Path, frames: Sequence[Atoms]) -> None:
    """A set of frames; one that is there already must be the same.

    Raises:
        DataError: it is not.
    """
    new = path.with_suffix(".new.xyz")
    with atomic_write(new) as temporary:
        ase.io.write(temporary, frames, format="extxyz")
    if path.exists() and path.read_bytes() != new.read_bytes():
        new.unlink()
        raise DataError(
            f"{path} holds other frames: it was made from another file, or with another --held-out, "
            "--validation, --frames or --seed. Choose another --output."
        )
    new.replace(path)


def named_tests(arguments: argparse.Namespace) -> dict[str, Path]:
    """Test sets by their names in tables."""
    own = {f"held-out frames of {arguments.train.stem}": arguments.output / "data" / "held_out.xyz"}
    return {**(own if arguments.held_out else {}), **{file.stem: file for file in arguments.test}}


def configure(
    arguments: argparse.Namespace,
    name: str,
    frames: str,
    changes: Sequence[str],
    budget: Callable[[Config], Sequence[str]],
) -> Config:
    """That of the training ``name`` on the set ``frames``; ``budget`` gives what says how long it is."""
    data, run = arguments.output.absolute() / "data", arguments.output / "runs" / name
    paths = (f"data.train={data / f'{frames}.xyz'}", f"data.validation={data / 'validation.xyz'}")
    kind = next((c.split("=")[1] for c in changes if c.startswith("model.type=")), "nequip")
    changes = (*OF_TYPE.get(kind, ()), *arguments.overrides, *changes, *paths, f"run.directory={run}")
    return load_config(arguments.recipe, [*changes, *budget(load_config(arguments.recipe, changes))])


def for_minutes(minutes: float, kept: Path, config: Config) -> list[str]:
    """So much processor time, by which the schedule goes, and more epochs than it should suffice for.

    What these were measured by stays in ``kept``, and so do they.

    Raises:
        ConfigError: not even two.
    """
    name, known = config.run.directory.name, read_json(kept) if kept.exists() else {}
    key = f"{name} {hashlib.sha256(config.to_yaml().encode()).hexdigest()[:16]}"
    if key not in known:
        known[key] = epoch_seconds(config)
        write_json(kept, known)
    epochs = minutes * 60 / known[key]
    if epochs < 2:
        raise ConfigError(
            f"{name}: two epochs take {known[key] / 30:.3g} minutes. Raise --minutes ({minutes:g}), or take "
            "fewer frames or a smaller model."
        )
    time = f"training.max_minutes={minutes:g}", "training.schedule.in_time=true"
    return [f"training.epochs={math.ceil(_MORE_EPOCHS * epochs)}", *time]


def epoch_seconds(config: Config) -> float:
    """Processor time of an epoch, from some steps, whose weights are thrown away, and validation batches."""
    prepared = prepare(config)
    training, validation_set = config.training, prepared.datasets.validation
    start, device = prepared.start, prepared.device
    trial = Trial(config, prepared.training_set, start.potential, device, start.factors)
    budget = budget_of(training.validation_batch_size or training.batch_size)
    validation = BatchSampler(validation_set, budget)

    def validate(graph) -> None:
        predict(trial.potential, graph.to(device), energy=training.loss.of_energies)

    of_step = _seconds(lambda step: trial.train(step, training.learning_rate), trial.steps(_TIMED_STEPS))
    trial.potential.eval()
    of_batch = _seconds(validate, islice(batch_loader(validation_set, validation), 3))
    return _OVERHEAD * (len(trial.sampler) * of_step + len(validation) * of_batch)


def _seconds(call: Callable, items: Iterable) -> float:
    """Mean processor time of making an item and of the call, without the first, which compiles and caches."""
    marks = [time.process_time()]
    for item in items:
        call(item)
        marks.append(time.process_time())
    taken = np.diff(marks)
    return float(np.mean(taken[1:] if len(taken) > 1 else taken))


def run_one(config: Config, tests: dict[str, Path]) -> dict:
    """Train and evaluate, or read what was found before; errors in the units of logs (meV).

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
    kept = directory.root / "measured.json"
    known = read_json(kept) if kept.exists() else {"processor_seconds": 0.0, "errors": {}}
    if not is_done(config):
        start, resume = time.process_time(), directory.root if directory.last.exists() else None
        stopped = train(config, resume=resume, overwrite=True).stopped
        known["processor_seconds"] += time.process_time() - start
        write_json(kept, known)
        if stopped == INTERRUPTED:
            raise KeyboardInterrupt
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in tests.items()}
    for name, digest in digests.items():
        if digest not in known["errors"]:
            known["errors"][digest] = _in_units(summary(evaluate(directory.root, [tests[name]]).comparison))
            write_json(kept, known)
    metrics = read_metrics(directory)
    return {
        "run": directory.root.name,
        **{key: metrics[key] for key in ("epochs", "best_epoch", "steps")},
        "processor_seconds": known["processor_seconds"],
        "quantities": [name for name in QUANTITIES if config.training.loss.final_weight(name) > 0],
        "validation": _in_units(metrics["validation"]),
        "errors": {name: known["errors"][digest] for name, digest in digests.items()},
    }


def is_done(config: Config) -> bool:
    """Whether its training has ended, and was neither interrupted nor killed before its evaluation."""
    return read_metrics(RunDirectory(config.run.directory)).get("stopped") not in (None, INTERRUPTED)


def _in_units(errors: dict[str, float]) -> dict[str, float]:
    """MAE and RMSE of each quantity in the unit of logs; ``errors`` are in eV and Å."""
    return {
        f"{name}_{kind}": errors[f"{name}_{kind}"] / quantity.reported[0].size
        for name, quantity in QUANTITIES.items()
        for kind in ("mae", "rmse")
        if f"{name}_{kind}" in errors
    }


def known_everywhere(rows: Sequence[dict], test: str, error: str) -> list[str]:
    """What was trained on and is labelled in a test set, forces first."""
    found = [set(row["quantities"]) for row in rows]
    found += [{key.removesuffix(f"_{error}") for key in row["errors"][test]} for row in rows]
    return sorted(set.intersection(*found), key=["forces", *QUANTITIES].index)


def error_axis(axes: Axes, quantity: str, error: str) -> None:
    """A logarithmic axis of errors with a few plain numbers."""
    unit = QUANTITIES[quantity].reported[0].unit
    axes.set(yscale="log", ylabel=f"{QUANTITIES[quantity].singular} {error.upper()} ({unit})")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25, linewidth=0.6)
