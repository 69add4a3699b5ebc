"""Evaluate a model on structure files: what ``equipot evaluate`` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from equipot.config import LabelsConfig
from equipot.data.frames import Frame
from equipot.data.readers import read_frames
from equipot.errors import DataError
from equipot.evaluation.model import load_model
from equipot.evaluation.plots import plot_parity
from equipot.evaluation.predict import Comparison, predict_frames
from equipot.evaluation.report import print_report, write_json
from equipot.evaluation.write import write_predictions

NOT_READ = "none"  # as a label name: do not read this label


@dataclass(frozen=True)
class Evaluation:
    """Predictions beside their labels, and the files written."""

    comparison: Comparison
    files: list[Path]


def evaluate(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    output: Path | None = None,
    predictions: Path | None = None,
    label_names: dict[str, str] | None = None,
    batch_size: int = 16,
    device: str = "auto",
    console: Console | None = None,
) -> Evaluation:
    """Predict every frame of ``data`` and compare with its labels.

    Args:
        model: run directory, checkpoint or deployed file.
        data: structure files; units, and label names unless given, are those the model was trained with.
        output: folder for ``errors.json`` and ``parity.png``.
        predictions: extended XYZ file for predicted and reference values.
        label_names: names of ``energy``, ``forces``, ``stress`` in the files; ``none``: do not read that one.
        batch_size: frames evaluated at once.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        console: where to print the tables; None prints nothing.

    Raises:
        DataError: unusable data; or no frame has any label, and no predictions are to be written.
        ModelFileError, DeviceError: see ``load_model``.
        UnknownSpeciesError: see ``predict_frames``.
    """
    loaded = load_model(model, device)
    labels = choose_labels(loaded.labels, label_names or {})
    frames = read_frames(list(data), labels, loaded.units, required=())
    if predictions is None:
        require_labels(frames)
    comparison = predict_frames(loaded, frames, batch_size)
    if console is not None:
        print_report(comparison, console)
    files = []
    if output is not None:
        write_json(comparison, loaded.path, output / "errors.json")
        files.append(output / "errors.json")
        if plot_parity(comparison, output / "parity.png"):
            files.append(output / "parity.png")
    if predictions is not None:
        write_predictions(comparison, predictions)
        files.append(predictions)
    return Evaluation(comparison, files)


def require_labels(frames: Sequence[Frame]) -> None:
    """Raise DataError if there is nothing to compare with."""
    if all(frame.energy is None and frame.forces is None and frame.stress is None for frame in frames):
        raise DataError(
            f"None of the {len(frames)} frames has an energy, forces or a stress under the names looked for. "
            "Give their names with --energy-key, --forces-key, --stress-key, or ask for --predictions only."
        )


def choose_labels(stored: LabelsConfig, names: dict[str, str]) -> LabelsConfig:
    """``stored`` with the given names in place of its own."""
    given = {key: None if name == NOT_READ else name for key, name in names.items()}
    return LabelsConfig(**{**stored.model_dump(), **given})
