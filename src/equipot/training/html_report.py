"""One HTML file that tells a whole training: what was trained, on what, how well, and how to do it again.

Everything comes from the files of the run directory, so it can be written at any time. The page needs
nothing but itself: styles are inside, plots are data URIs, and there are no scripts.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import yaml

from equipot import __version__
from equipot.config.outputs import OutputConfig
from equipot.data.splits import Split
from equipot.data.statistics import LevelStatistics, Statistics
from equipot.data.text import duration
from equipot.errors import TrainingError
from equipot.evaluation.report import (
    ERRORS,
    MAX_GROUPS,
    PARITY,
    S2EF,
    group_rows,
    number,
    s2ef_tags,
    short_names,
)
from equipot.files import read_json, write_text
from equipot.quantities import BY_INTEREST, QUANTITIES, USUAL, declare
from equipot.run_directory import EVALUATED, RunDirectory
from equipot.training import stopping
from equipot.training.history import History, Row, learning_curve, read_sessions
from equipot.training.replay import COLUMNS, forgetting_rows
from equipot.training.report import WARNING

_TEMPLATE = Path(__file__).with_name("report.html")
_MAX_WARNINGS = 50
_STATUS = {
    stopping.FINISHED: ("finished", "good"),
    stopping.OUT_OF_TIME: ("stopped: training.max_minutes used up", "note"),
    stopping.NO_PROGRESS: ("stopped early: the validation loss no longer fell", "good"),
    stopping.INTERRUPTED: ("interrupted", "note"),
    "failed": ("failed", "bad"),
    None: ("unfinished: still running, or killed", "note"),
}


def write_report(run: Path, output: Path | None = None) -> Path:
    """Write the page of a run directory, finished or not; the file written (``report.html`` in ``run``).

    Raises:
        TrainingError: ``run`` is not a run directory, or a file in it is damaged.
    """
    directory = RunDirectory(run)
    _require_run(directory)
    output = directory.report if output is None else output
    if output.is_dir():
        raise TrainingError(f"'{output}' is a folder; give the name of the HTML file to write.")
    if output.exists() and output.suffix not in (".html", ".htm"):
        raise TrainingError(f"'{output}' exists and is no page. Give another name, such as {output}.html.")
    try:
        text = render(describe(directory))
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise TrainingError(
            f"'{directory.root}' has a file that cannot be read, damaged or of another version: "
            f"{type(error).__name__}: {error}."
        ) from error
    write_text(output, text)
    return output


def render(page: Mapping[str, Any]) -> str:
    """The HTML of what ``describe`` gives; every value is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "duration": duration, "time": _time_text}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(page)


def describe(directory: RunDirectory) -> dict[str, Any]:
    """What the template shows, from the files of the run directory."""
    config_text = directory.config.read_text(encoding="utf-8")
    config = yaml.safe_load(config_text)
    outputs = config["model"].get("outputs") or {}  # which runs of earlier versions do not have
    for name, facts in outputs.items():
        declare(OutputConfig(**facts).quantity(name))
    statistics = Statistics.from_dict(read_json(directory.statistics))
    split = Split.load(directory.split)
    history = History(directory.history)
    history.read()
    columns = {column for row in history.rows for column in row}
    metrics = read_json(directory.metrics) if directory.metrics.is_file() else {}
    sessions = read_sessions(directory.sessions)
    outdated = bool(metrics and history.rows) and metrics["epochs"] < history.rows[-1]["epoch"]
    best_epoch = _lowest(history.rows) if outdated or not metrics else metrics["best_epoch"]
    evaluations = [_evaluation(directory, name) for name in EVALUATED]
    evaluations = [evaluation for evaluation in evaluations if evaluation]
    return {
        "title": directory.root.resolve().name,
        "version": __version__,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "config_text": config_text,
        "status": _status(sessions, metrics, history.rows),
        "rows": history.rows,
        "best_epoch": best_epoch,
        "best": next((row for row in history.rows if row["epoch"] == best_epoch), None),
        "labels": [q for q in BY_INTEREST if {f"train_{q.name}_mae", f"validation_{q.name}_mae"} & columns],
        "curve": _svg(history.rows, best_epoch) if history.rows else None,
        "outdated": outdated,
        "evaluations": evaluations,
        "s2ef": S2EF,
        "statistics": statistics,
        "levels": _levels(statistics) if config["model"].get("energy", True) else {},
        "shown": {*USUAL, *outputs},
        "quantities": QUANTITIES,
        "species": _species(statistics, evaluations),
        "replay": _replay(directory, config),
        "sets": _sets(split),
        "digests": split.file_digests,
        "model": _flat(config["model"]),
        "training": _flat(config["training"]),
        "sessions": sessions,
        "reasons": {key: text for key, (text, _) in _STATUS.items()},
        "timing": _timing(history.rows, statistics),
        **_warnings(directory),
    }


def _time_text(moment: str | None) -> str:
    """ISO 8601 in UTC, to the minute."""
    return "–" if moment is None else f"{moment[:16].replace('T', ' ')} UTC"


def _require_run(directory: RunDirectory) -> None:
    needed = (directory.config, directory.split, directory.statistics)
    missing = [path.name for path in needed if not path.is_file()]
    if not missing:
        return
    root = directory.root
    runs = sorted(p.parent for p in root.glob(f"*/{directory.config.name}")) if root.is_dir() else []
    hint = f" Runs in it: {', '.join(map(str, runs))}." if runs else ""
    found = f"has no {', '.join(missing)}" if root.is_dir() else "is not a folder"
    raise TrainingError(f"'{root}' is not the run directory of a training: it {found}.{hint}")


def _status(sessions: list[dict], metrics: dict, rows: list[Row]) -> dict[str, Any]:
    if sessions:
        reason, error = sessions[-1]["stopped"], sessions[-1].get("error")
    else:
        reason, error = metrics.get("stopped"), None
    text, kind = _STATUS.get(reason, (reason, "note"))
    return {"reason": reason, "text": text, "kind": kind, "error": error,
            "epochs": rows[-1]["epoch"] if rows else 0}  # fmt: skip


def _lowest(rows: list[Row]) -> float | None:
    return min(rows, key=lambda row: row["validation_loss"])["epoch"] if rows else None


def _evaluation(directory: RunDirectory, name: str) -> dict[str, Any] | None:
    folder = directory.evaluation / name
    if not (folder / ERRORS).is_file():
        return None
    content = read_json(folder / ERRORS)
    parity = folder / PARITY
    files = [frame["file"] for frames in content["worst_frames"].values() for frame in frames]
    return {
        "name": name,
        "content": content,
        "groups": {kind: group_rows(kind, groups) for kind, groups in content["groups"].items()},
        "s2ef": content.get("s2ef", [])[: 1 + MAX_GROUPS],
        "tags": s2ef_tags(content.get("s2ef", [])),
        "files": short_names(files),
        "parity": _data_uri(parity.read_bytes(), "image/png") if parity.is_file() else None,
    }


def _replay(directory: RunDirectory, config: dict[str, Any]) -> dict[str, Any] | None:
    """Of a finished fine-tuning with replay frames: errors on these, before and after."""
    if not directory.forgetting.is_file():
        return None
    found = read_json(directory.forgetting)
    if "after" not in found:
        return None
    plot = directory.forgetting_plot
    return {
        "rows": forgetting_rows(found),
        "columns": [(name, QUANTITIES[name].reported[0].unit) for name in COLUMNS],
        "weight": config["fine_tune"]["replay_weight"],
        "plot": _data_uri(plot.read_bytes(), "image/png") if plot.is_file() else None,
    }


def _species(statistics: Statistics, evaluations: list[dict]) -> list[dict[str, Any]]:
    """One row per species of the training frames; its force errors where an evaluation tells them."""
    rows = []
    for i, symbol in enumerate(statistics.species):
        if not statistics.atoms_per_species[i]:
            continue
        errors = [evaluation["content"]["errors"] for evaluation in evaluations]
        # A set with one species has no rows by species: all of it is that species.
        alone = statistics.species == [symbol]
        found = [
            e.get(f"forces_{symbol}")
            or (e.get("forces") if alone and not any(key.startswith("forces_") for key in e) else None)
            for e in errors
        ]
        rows.append({
            "symbol": symbol,
            "atoms": statistics.atoms_per_species[i],
            "energies": [level.atomic_energies[i] for level in _levels(statistics).values()],
            "errors": [None if row is None else row["mae"] for row in found],
        })  # fmt: skip
    return rows


def _levels(statistics: Statistics) -> Mapping[str, Statistics | LevelStatistics]:
    """What has reference energies of its own, by name; one without a name where there is one level."""
    return statistics.levels or {"": statistics}


def _sets(split: Split) -> list[dict[str, Any]]:
    """Number of frames of each set, by file."""
    names = short_names(split.file_digests)
    sets = []
    for name in ("train", "validation", "test"):
        counts = Counter(names.get(file, file) for file, _ in getattr(split, name))
        sets.append({"name": name, "frames": counts.total(), "files": counts})
    return sets


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"loss": {"energy": 1}}`` as ``{"loss.energy": "1"}``, without what is not set."""
    flat: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat


def _timing(rows: list[Row], statistics: Statistics) -> dict[str, float] | None:
    if not rows:
        return None
    epochs = sorted(row["epoch_s"] for row in rows)
    return {
        "total": rows[-1]["time_s"],
        "epoch": epochs[len(epochs) // 2],
        "steps": rows[-1]["step"],
        "frame": epochs[len(epochs) // 2] / statistics.num_frames,
    }


def _warnings(directory: RunDirectory) -> dict[str, Any]:
    """What the log warns of, each line once, in order."""
    lines = directory.log.read_text(encoding="utf-8").splitlines() if directory.log.is_file() else []
    found = dict.fromkeys(line.removeprefix(WARNING) for line in lines if line.startswith(WARNING))
    return {"warnings": list(found)[:_MAX_WARNINGS], "more_warnings": max(0, len(found) - _MAX_WARNINGS)}


def _svg(rows: list[Row], best_epoch: float | None) -> str:
    buffer = io.BytesIO()
    # Without a date and with a fixed salt, the same history gives the same bytes.
    with matplotlib.rc_context({"svg.hashsalt": "equipot"}):
        learning_curve(rows, best_epoch).savefig(buffer, format="svg", metadata={"Date": None})
    return _data_uri(buffer.getvalue(), "image/svg+xml")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
