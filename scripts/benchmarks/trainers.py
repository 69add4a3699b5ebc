"""equipot's trainer, NequIP's and MACE's on the same frames, for the same processor time.

    scripts/benchmark trainers TRAIN [--test FILE] [--minutes 30] [--threads 1] [--only NAME ...]

Validation frames are drawn from TRAIN once. Each trainer is a process of its own with its own recipe:
equipot --config, the others scripts/benchmarks/trainers/*.yaml. --minutes are of processor time, of the
process and its children, imports and compilations included, so that a busy machine is fair. Schedules that
need a number of epochs (equipot's, MACE's) get as many as fit, by a pilot of some steps that does not count,
and end when these are done; NequIP's, which needs none, is stopped when the time is up. Then the weights
that were best in validation predict the validation frames and FILE by the trainer's own ASE calculator. The
peers get environments of their own in .benchmark-envs unless --nequip-python or --mace-python name
interpreters.

OUTPUT/NAME/result.json is written after each trainer, OUTPUT/results.json has all of them; what was trained
is not trained again, so that trainers can be run one by one.
"""

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import ase.io
import numpy as np
import yaml
from compare.environments import peer_python
from rich.console import Console
from rich.table import Table
from trainings import positive, write_frames

from equipot.errors import ConfigError, EquipotError
from equipot.files import read_json, write_json

ROOT = Path(__file__).resolve().parents[2]
RECIPES = Path(__file__).parent / "trainers"
PACKAGES = {"equipot": "equipot", "nequip": "nequip", "mace": "mace-torch"}
COLUMNS = ("trainer", "recipe", "epochs", "steps", "CPU min", "forces MAE", "RMSE", "energy RMSE")
PLANNED = ("equipot", "mace")  # whose schedule needs the number of epochs
_ENDLESS = 100_000
_WARM_UP, _PILOT_SECONDS = 10, 30.0  # steps before those that are timed, which compile and cache; and those
_MACE_BATCH, _VALIDATION = 5, 1.05  # of trainers/mace.yaml; an epoch with its validation over its steps
_SHARE = 0.97  # of the time that a plan fills
_TICK = 1.0  # s; a look at all processes takes some ms


def command(arguments: argparse.Namespace, name: str, folder: Path, epochs: int) -> list:
    """The trainer's own command line, which leaves its files in ``folder``."""
    python, data = arguments.pythons[name], arguments.output.absolute() / "data"
    train, validation = data / "train.xyz", data / "validation.xyz"
    if name == "equipot":
        files = [f"data.train={train}", f"data.validation={validation}", "data.test=null"]
        changes = [*files, f"run.directory={folder}", *stretched(arguments.config, epochs)]
        return [python, "-m", "equipot.cli", "train", arguments.config, *changes]
    if name == "nequip":
        symbols = sorted({symbol for atoms in ase.io.read(train, ":") for symbol in atoms.symbols})
        changes = [f"train={train}", f"validation={validation}", f"folder={folder}"]
        changes += [f"symbols=[{','.join(symbols)}]", f"compile={arguments.nequip_mode}"]
        run = "from nequip.scripts.train import main; main()"
        return [python, "-c", run, "-cp", RECIPES.absolute(), "-cn", "nequip", *changes]
    files = [f"--train_file={train}", f"--valid_file={validation}", f"--work_dir={folder}", "--name=mace"]
    more = [f"--config={RECIPES / 'mace.yaml'}", f"--max_num_epochs={epochs}"]
    return [python, "-m", "mace.cli.run_train", *more, *files]


def stretched(config: Path, epochs: int) -> list[str]:
    """Changes of equipot's recipe to so many epochs; what begins or ends at one does so at the same share."""
    training = yaml.safe_load(config.read_text())["training"]

    def stages(key: str, value: object) -> list[str]:
        if isinstance(value, dict):
            return [change for name, inner in value.items() for change in stages(f"{key}.{name}", inner)]
        moved = key.endswith((".from_epoch", ".to_epoch"))
        return [f"{key}={round(value * epochs / training['epochs'])}"] if moved else []

    return [f"training.epochs={epochs}", *stages("training", training)]


def progress(name: str, folder: Path) -> tuple[int, int]:
    """Epochs that were validated, and steps, from the trainer's own log."""
    if name == "mace":
        text = "".join(path.read_text() for path in folder.glob("results/*_train.txt"))
        rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        epochs = sum(row["mode"] == "eval" and row["epoch"] is not None for row in rows)
        return epochs, sum(row["mode"] == "opt" for row in rows)
    file, column = folder / "metrics.csv", {"equipot": "epoch", "nequip": "val0_epoch/weighted_sum"}[name]
    if not file.exists():
        return 0, 0
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    # Lightning counts steps from 0.
    steps = max((int(row["step"] or 0) + (name == "nequip") for row in rows), default=0)
    return sum(bool(row.get(column)) for row in rows), steps


def checkpoints(name: str, folder: Path) -> list[Path]:
    """What the trainer calls its best weights; MACE has those of its two stages."""
    if name == "mace":
        return [path for path in folder.glob("mace*.model") if "compiled" not in path.name]
    return [folder / "checkpoints" / "best.ckpt" if name == "equipot" else folder / "best.ckpt"]


def session_seconds(session: int) -> float:
    """Processor time of all processes of a session, and of those that they have waited for (Linux)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that has ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def run(line: list, folder: Path, threads: int, done: Callable[[float], bool] = lambda _: False) -> float:
    """Processor time of a command and its children, which are ended as soon as ``done`` of it is true.

    Raises:
        RuntimeError: the command failed; its messages are in the file ``folder``.log.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    messages = folder.with_suffix(".log")
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    seconds, stopped = 0.0, False
    with messages.open("wb") as log:
        process = subprocess.Popen(
            line, stdout=log, stderr=log, cwd=folder.parent, env=environment, start_new_session=True
        )
        try:
            while process.poll() is None and not stopped:
                time.sleep(_TICK)
                seconds = max(seconds, session_seconds(process.pid))
                stopped = done(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode and not stopped:
        raise RuntimeError(f"{line[0]} ended with status {process.returncode}: see {messages}")
    return seconds


def plan(arguments: argparse.Namespace, name: str, folder: Path) -> int:
    """Epochs that fill the time, from a run that is ended after some steps.

    Raises:
        ConfigError: not even one does.
    """
    marks: list[tuple[int, float]] = []

    def enough(seconds: float) -> bool:
        steps = progress(name, folder)[1]
        if steps >= _WARM_UP and (not marks or steps > marks[-1][0]):
            marks.append((steps, seconds))
        return len(marks) > 1 and marks[-1][1] - marks[0][1] > _PILOT_SECONDS

    run(command(arguments, name, folder, _ENDLESS), folder, arguments.threads, enough)
    (first, start), (last, end) = marks[0], marks[-1]
    step = (end - start) / (last - first)
    epochs, steps = progress(name, folder)
    # equipot's log has whole epochs with their validation, MACE's has steps.
    frames = len(ase.io.read(arguments.output / "data" / "train.xyz", ":"))
    in_epoch = steps / epochs if epochs else _VALIDATION * max(1, frames // _MACE_BATCH)
    planned = int((_SHARE * arguments.minutes * 60 - max(0.0, start - first * step)) / (in_epoch * step))
    if planned < 1:
        raise ConfigError(f"{name}: an epoch takes {in_epoch * step:.0f} s: raise --minutes.")
    print(f"{name}: {planned} epochs, {step:.3g} s of processor time for a step", file=sys.stderr)
    return planned


def errors(frames: Path, predicted: dict) -> dict[str, float]:
    """MAE and RMSE of force components (eV/Å) and of energies per atom (eV)."""
    reference = ase.io.read(frames, ":")
    per_atom = np.array([atoms.get_potential_energy() for atoms in reference]) - predicted["energies"]
    differences = {
        "forces": np.concatenate([atoms.get_forces() for atoms in reference]) - predicted["forces"],
        "energy": per_atom / [len(atoms) for atoms in reference],
    }
    kinds = {"mae": lambda x: np.abs(x).mean(), "rmse": lambda x: np.sqrt(np.square(x).mean())}
    return {f"{q}_{k}": float(f(x)) for q, x in differences.items() for k, f in kinds.items()}


def predict(arguments: argparse.Namespace, name: str, model: Path, frames: Path) -> dict:
    """What the trainer's calculator says of a file of frames."""
    output = arguments.output.absolute() / name / "predictions" / f"{frames.stem}.json"
    files = [model.absolute(), frames.absolute(), output]
    line = [arguments.pythons[name], RECIPES / "predict.py", name, PACKAGES[name], *files]
    run(line, output, arguments.threads)
    return read_json(output)


def compete(arguments: argparse.Namespace, name: str) -> None:
    """Train and predict what was not trained and predicted before.

    Raises:
        ConfigError: it was with another time, number of threads or split; or the time is too short.
    """
    folder, settings = arguments.output.absolute() / name, settings_of(arguments, name)
    trained, training = folder / "trained.json", folder / "training"
    if not trained.exists():
        shutil.rmtree(folder, ignore_errors=True)
        planned, limit = name in PLANNED, arguments.minutes * 60
        epochs = plan(arguments, name, folder / "pilot") if planned else _ENDLESS
        line = command(arguments, name, training, epochs)
        seconds = run(line, training, arguments.threads, lambda used: not planned and used > limit)
        write_json(trained, {"settings": settings, "processor_seconds": seconds})
    result = read_json(trained)
    if result["settings"] != settings:
        raise ConfigError(f"{trained} has {result['settings']}, not {settings}: choose another --output.")
    evaluate(arguments, name, training, result)


def evaluate(arguments: argparse.Namespace, name: str, training: Path, result: dict) -> None:
    """Write errors of the weights that are best in validation, and ``result``.

    Raises:
        ConfigError: there are none.
    """
    validation, known = arguments.output / "data" / "validation.xyz", {}
    for model in filter(Path.exists, checkpoints(name, training)):
        known[model] = errors(validation, predict(arguments, name, model, validation))
    if not known:
        raise ConfigError(f"{name}: no epoch ended in {arguments.minutes:g} minutes: raise --minutes.")
    best = min(known, key=lambda model: known[model]["forces_rmse"])
    found, (epochs, steps) = {"validation": known[best]}, progress(name, training)
    for test in arguments.test:
        found[test.stem] = errors(test, predict(arguments, name, best, test))
    versions = read_json(arguments.output / name / "predictions" / "validation.json")["versions"]
    reached = {"versions": versions, "model": best.name, "epochs": epochs, "steps": steps}
    write_json(arguments.output / name / "result.json", {**result, **reached, "errors": found})


def settings_of(arguments: argparse.Namespace, name: str) -> dict:
    """What a training was given."""
    settings = {key: getattr(arguments, key) for key in ("minutes", "threads", "validation", "seed")}
    own = {"equipot": {"config": arguments.config.name}, "nequip": {"mode": arguments.nequip_mode}}
    return {**settings, **own.get(name, {})}


def table(results: dict[str, dict], test: str) -> Table:
    """A row for each trainer; errors in meV."""
    shown = Table(title=f"Errors on {test}: forces in meV/Å, energies in meV/atom", title_justify="left")
    for number, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if number > 1 else "left")
    for name, row in results.items():
        if test in row["errors"]:
            recipe = row["settings"].get("config", f"{name}.yaml")
            facts = [
                f"{name} {row['versions'][PACKAGES[name]]}",
                recipe,
                str(row["epochs"]),
                str(row["steps"]),
            ]
            numbers = [1e3 * row["errors"][test][key] for key in ("forces_mae", "forces_rmse", "energy_rmse")]
            words = (f"{x:.{d}f}" for x, d in zip(numbers, (1, 1, 2), strict=True))
            shown.add_row(*facts, f"{row['processor_seconds'] / 60:.1f}", *words)
    return shown


def draw(arguments: argparse.Namespace) -> None:
    """Write the training and the validation frames, or find that they are there."""
    frames, share = ase.io.read(arguments.train, ":"), arguments.validation
    if not 0 < share < len(frames):
        raise ConfigError(f"--validation must leave some of the {len(frames)} frames of {arguments.train}.")
    order = np.random.default_rng(arguments.seed).permutation(len(frames))
    for name, part in (("validation", order[:share]), ("train", order[share:])):
        write_frames(arguments.output / "data" / f"{name}.xyz", [frames[i] for i in sorted(part)])


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("scripts/benchmark trainers", description=__doc__, formatter_class=raw)
    parser.add_argument("train", type=Path, metavar="TRAIN", help="labelled frames, any file ASE reads")
    parser.add_argument("--test", type=Path, action="append", default=[], metavar="FILE", help="repeatable")
    parser.add_argument("--minutes", type=positive(float), default=30.0, help="of processor time each (30)")
    parser.add_argument("--threads", type=positive(int), default=1, help="of each (1)")
    parser.add_argument("--validation", type=int, default=50, help="frames of TRAIN (50)")
    parser.add_argument("--seed", type=positive(int, or_zero=True), default=0, help="of the split (0)")
    parser.add_argument("--only", action="append", choices=list(PACKAGES), help="repeatable; all")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "molecule_nequip_medium.yaml")
    parser.add_argument("--nequip-mode", choices=("eager", "compile"), default="eager", help="(eager)")
    parser.add_argument("--nequip-python", type=Path)
    parser.add_argument("--mace-python", type=Path)
    parser.add_argument("--output", type=Path, default=Path("trainers"))
    arguments = parser.parse_args(argv)
    for file in (arguments.train, arguments.config, *arguments.test):
        if not file.is_file():
            parser.error(f"there is no file {file}")
        if file in arguments.test and file.stem == "validation":
            parser.error(f"{file}: a test set of this name would take the place of the validation frames")
    return arguments


def require_package(python: Path, name: str) -> None:
    """Raises ConfigError if the trainer is not in the interpreter's environment."""
    look = f"import importlib.metadata as m; m.version({PACKAGES[name]!r})"
    if subprocess.run([python, "-c", look], stderr=subprocess.DEVNULL, check=False).returncode:
        raise ConfigError(f"{PACKAGES[name]} is not in {python}: give another --{name}-python.")


def main(arguments: argparse.Namespace) -> dict[str, dict]:
    """Everything the command does; the results of all trainers that are in the folder."""
    draw(arguments)
    arguments.config, arguments.pythons = arguments.config.absolute(), {"equipot": Path(sys.executable)}
    for name in arguments.only or PACKAGES:
        if name != "equipot":
            given = getattr(arguments, f"{name}_python")
            made = ROOT / ".benchmark-envs" / name, ROOT / "constraints.txt"
            # Not resolved: a virtual environment's interpreter is a link.
            arguments.pythons[name] = given.absolute() if given else peer_python(name, *made)
            require_package(arguments.pythons[name], name)
        compete(arguments, name)
    kept = {name: arguments.output / name / "result.json" for name in PACKAGES}
    results = {name: read_json(file) for name, file in kept.items() if file.exists()}
    write_json(arguments.output / "results.json", results)
    console = Console() if sys.stdout.isatty() else Console(width=110)
    for test in ("validation", *(file.stem for file in arguments.test)):
        console.print(table(results, test))
    return results


if __name__ == "__main__":
    # Ended by a signal, it ends the trainer too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        main(parse())
    except (EquipotError, OSError, RuntimeError) as error:
        sys.exit(f"Error: {error}")
