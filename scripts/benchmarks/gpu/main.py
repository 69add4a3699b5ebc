"""The check on a GPU: is it right, how fast is it, where does the time go; one command, at most 8 minutes.

    scripts/benchmark gpu [--device cuda] [--output gpu-results] [--limit 480] [--only PART ...]
    scripts/benchmark gpu --prepare DIR     what a machine without network needs, and the line to run there
    scripts/benchmark gpu --replot results.json     table and figures once more, from a file brought back

Parts run in a process of their own, in the order of what one wants to know first. One that fails, crashes or
takes longer than its share is recorded with its message, and the next starts in a new process. In the output
folder (NAME-2 if another run has written to it): results.json (written after each part), table.md, log.txt,
and figures where matplotlib is installed.
The exit status is 1 if a result was wrong or a part failed; parts that no time was left for are only named.

--device cpu runs everything with small sizes. It says nothing about a GPU: it is for trying the check.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from driver import WHOLE, Check, WorkerError, figure
from report import failures, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def main() -> int:
    options = parse()
    try:
        if options.prepare is not None:
            from prepare import prepare

            return prepare(options.prepare, options.python, options.constraints, options.peers)
        if options.replot is not None:
            return replot(options.replot)
        return measure(options)
    except OSError as error:
        print(f"Error: {error.filename or ''}: {error.strerror or error}", file=sys.stderr)
        return 1


def measure(options: argparse.Namespace) -> int:
    """Run the check; the exit status."""
    # Ended by a signal, it ends its worker too.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = new_folder(options.output)
    log = folder / "log.txt"

    def say(text: str) -> None:
        print(text, flush=True)
        with contextlib.suppress(OSError), log.open("a") as file:  # a full disk does not end the check
            file.write(text + "\n")

    if folder != options.output:
        say(f"{options.output} has the results of another run; these go to {folder}.")

    facts = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": options.device,
        "size": options.size,
        "limit_s": options.limit,
    }

    def save(machine: dict, results: list[dict]) -> None:
        found = facts | {"machine": machine, "parts": results}
        try:
            write(folder / "results.json", json.dumps(found, indent=1, ensure_ascii=False))
            write(folder / "table.md", table(machine, results))
        except OSError as error:
            say(f"The results so far could not be written: {error}")

    with tempfile.TemporaryDirectory(prefix="equipot-gpu-", ignore_cleanup_errors=True) as scratch:
        base = {"device": options.device, "size": options.size, "folder": scratch}
        check = Check(base, options.parts, log, options.limit, say, save)
        try:
            results = run(check, options.only, say)
        except KeyboardInterrupt:
            say(f"Interrupted. What was found until then is in {folder}.")
            return 128 + signal.SIGINT
        finally:
            check.close()
    return finish(check.machine, results, folder, say)


def new_folder(wanted: Path) -> Path:
    """An empty folder of that name, or the first of NAME-2, NAME-3, ... that no other run has taken."""
    for number in itertools.count(1):
        folder = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (folder / "log.txt").touch(exist_ok=False)
            return folder
    raise AssertionError


def run(check: Check, only: list[str], say: Callable) -> list[dict]:
    """Say what the check runs on, and run it."""
    try:
        check.start()
    except WorkerError as error:
        raise SystemExit(f"Error: {error}") from None
    for key, value in check.machine.items():
        say(f"{key:20}{figure(value)}")
    names = [part["name"] for part in check.parts]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise SystemExit(f"Error: no part {', '.join(unknown)}; there are {', '.join(names)}")
    return check.run(only)


def seconds(text: str) -> float:
    value = float(text)
    if not 10 <= value < 1e6:
        raise argparse.ArgumentTypeError(f"expected at least 10 seconds, found {text}")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/benchmark gpu", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="a folder")
    parser.add_argument("--limit", type=seconds, default=WHOLE, help=f"seconds, at least 10; default {WHOLE}")
    names = "ceilings operators models launches steps edges layers training peers lammps"
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"of {names}")
    parser.add_argument(
        "--size", choices=["full", "small", "tiny"], help="default: full on a GPU, small on a CPU"
    )
    parser.add_argument(
        "--parts", type=Path, default=HERE / "parts.py", help="another file that defines PARTS"
    )
    parser.add_argument("--prepare", type=Path, metavar="DIR")
    parser.add_argument(
        "--python", help="for --prepare: its version there, such as 3.12; default: this one's"
    )
    parser.add_argument(
        "--constraints", type=Path, default=ROOT / "constraints.txt", help="for --prepare: pins"
    )
    parser.add_argument("--peers", action="store_true", help="for --prepare: NequIP and OpenEquivariance too")
    parser.add_argument("--replot", type=Path, metavar="FILE")
    options = parser.parse_args()
    options.size = options.size or ("full" if options.device == "cuda" else "small")
    options.parts = options.parts.resolve()
    return options


def finish(machine: dict, results: list[dict], folder: Path, say: Callable) -> int:
    """Table and figures; the exit status."""
    text = table(machine, results)
    print("\n" + text)
    bad = failures(results)
    try:
        write(folder / "table.md", text)
        say(f"Written to {folder}: results.json, table.md, log.txt, {draw(results, folder)}")
    except OSError as error:
        bad.append(f"the table and figures could not be written: {error}")
    for line in bad:
        say(line)
    return 1 if bad else 0


def draw(results: list[dict], folder: Path) -> str:
    if importlib.util.find_spec("matplotlib") is None:
        return (
            "no figures: matplotlib is not installed (elsewhere: scripts/benchmark gpu --replot results.json)"
        )
    from plots import draw

    return ", ".join(draw(results, folder)) or "no figures: nothing to draw"


def replot(file: Path) -> int:
    """Table and figures beside a file of results."""
    try:
        found = json.loads(file.read_text())
        machine, parts = found["machine"], found["parts"]
        table(machine, parts)
    except (ValueError, TypeError, KeyError) as error:
        print(
            f"Error: {file} holds no results of the check: {type(error).__name__}: {error}", file=sys.stderr
        )
        return 1
    return finish(machine, parts, file.parent, print)


def write(path: Path, text: str) -> None:
    """Complete or as before: the run may be ended at any time."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
