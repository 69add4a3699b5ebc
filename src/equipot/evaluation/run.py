"""Evaluate a model on structure files: what ``equipot evaluate`` does."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from rich.console import Console

from equipot.data.frames import Frame, set_marks
from equipot.data.readers import expand_paths, named_reading, read_frames
from equipot.data.text import KEY_ADVICE
from equipot.errors import DataError
from equipot.evaluation.density import report_densities
from equipot.evaluation.ensemble import (
    Disagreement,
    disagreement_rows,
    member_paths,
    predict_members,
    print_disagreement,
    write_disagreement,
)
from equipot.evaluation.model import load_model
from equipot.evaluation.predict import Comparison
from equipot.evaluation.report import ERRORS, print_report, write_evaluation
from equipot.evaluation.uncertainty import print_uncertainty, write_uncertainty
from equipot.files import atomic_write, refuse_to_replace
from equipot.quantities import QUANTITIES

logger = logging.getLogger("equipot")

_LARGE_OFFSET = 1.0  # eV/atom: more than a model of the same level of theory is ever wrong on average


@dataclass(frozen=True)
class Evaluation:
    """Predictions beside their labels, and the files written."""

    comparison: Comparison
    files: list[Path]
    disagreement: Disagreement | None = None  # of an ensemble


def evaluate(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    output: Path | None = None,
    predictions: Path | None = None,
    overwrite: bool = True,
    label_names: dict[str, str] | None = None,
    units: dict[str, str] | None = None,
    missing: str | None = None,
    format_name: str | None = None,
    species_map: str | None = None,
    keep_unconverged: bool = False,
    fixed_atoms: str | None = None,
    max_edges: int | None = None,
    device: str = "auto",
    level: str | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Predict every frame of ``data`` and compare with its labels.

    Args:
        model: run directory, checkpoint or deployed file; or the folder of an ensemble, trained or deployed,
            whose mean is compared, and how well the disagreement of its members foretells the errors.
        data: structure files; label names, units and what NaN means are, unless given, as in its training.
        output: folder for ``errors.json`` and ``parity.png``; of an ensemble also ``disagreement.json`` and
            ``calibration.png``, of a file deployed with an uncertainty ``uncertainty.json`` and the plot; of
            densities ``densities.json``.
        predictions: extended XYZ file for predicted and reference values.
        overwrite: replace ``predictions`` and an earlier evaluation in ``output``.
        label_names: names of quantities in the files; ``none``: do not read that one.
        units, missing, format_name, species_map, keep_unconverged, fixed_atoms: as ``named_reading`` takes
            them.
        max_edges: edges evaluated at once; None: as suits the device.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        level: level of theory to predict; None: the model's only one.
        console: where to print the tables; None prints nothing.

    Raises:
        DataError: unusable data; no frame has any label, and no predictions are to be written; or ``output``
            is a file.
        ConfigError: ``predictions`` is a folder or one of ``data``; what cannot be written, or is there
            without ``overwrite``.
        ModelFileError, DeviceError: see ``load_model``, ``member_paths`` and ``predict_members``.
        UnknownSpeciesError, EvaluationError: see ``predict_frames``.
    """
    _check_targets(output, predictions, expand_paths(data, format_name), overwrite)
    members = [load_model(path, device, level) for path in member_paths(model)]
    loaded = members[0]
    how = missing, format_name, species_map, keep_unconverged, fixed_atoms
    reading = named_reading(label_names or {}, units or {}, *how, others=loaded)
    frames = read_frames(list(data), **reading, required=(), need_any=predictions is None, advice=KEY_ADVICE)
    comparison, spread = predict_members(members, frames, max_edges)
    warn_about_offset(comparison)
    if console is not None:
        _print(comparison, spread, len(members), console)
    files: list[Path] = []
    if output is not None:
        files += write_evaluation(comparison, loaded.path if spread is None else Path(model), output)
        if spread is not None:
            files += write_disagreement(comparison, spread, frames, len(members), output)
        if comparison.uncertainty is not None:
            files += write_uncertainty(comparison, output)
    files += report_densities(comparison, frames, console, output)
    if predictions is not None:
        write_predictions(comparison, frames, predictions)
        files.append(predictions)
    return Evaluation(comparison, files, spread)


def _print(comparison: Comparison, spread: Disagreement | None, members: int, console: Console) -> None:
    if comparison.has_labels:
        print_report(comparison, console)
    else:
        console.print("There are no labels to compare the predictions with.")
    if spread is not None:
        print_disagreement(disagreement_rows(comparison, spread), members, console)
    if comparison.uncertainty is not None:
        print_uncertainty(comparison, console)


def warn_about_offset(comparison: Comparison) -> None:
    """One line when the energies are off by so much on average that they cannot be of the same kind."""
    if "energy" not in comparison.values:
        return
    errors = comparison.error("energy")
    errors = errors[~np.isnan(errors)]
    if errors.size and abs(errors.mean()) > _LARGE_OFFSET:
        logger.warning(
            "The energies are off by %.3g eV/atom on average: other units, or another level of theory or "
            "other reference energies than in training?", errors.mean(),
        )  # fmt: skip


def _check_targets(
    output: Path | None, predictions: Path | None, data: Sequence[Path], overwrite: bool
) -> None:
    """Before anything is computed."""
    if output is not None and output.exists() and not output.is_dir():
        raise DataError(f"--output {output} is a file; give the name of a folder, which is made if needed.")
    if output is not None and output == predictions:
        raise DataError(f"{output} cannot be both the folder --output and the file --predictions.")
    if output is not None:
        refuse_to_replace(output / ERRORS, overwrite)
    if predictions is not None:
        refuse_to_replace(predictions, overwrite, "--predictions", inputs=data)


def write_predictions(comparison: Comparison, frames: Sequence[Frame], path: Path) -> None:
    """Write every frame with predicted and reference values, in eV and Å whatever the units of the data.

    Names: ``predicted_energy``, ``predicted_forces``, ``predicted_stress`` and ``reference_*``, and
    ``predicted_energy_uncertainty`` where the model knows it; a missing
    reference, and the stress of a frame that is not periodic in all directions, are left out.
    """
    with atomic_write(path) as temporary:
        found = [_frame_with_predictions(comparison, frame, i) for i, frame in enumerate(frames)]
        ase.io.write(temporary, found, format="extxyz")


def _frame_with_predictions(comparison: Comparison, frame: Frame, i: int) -> Atoms:
    atoms = Atoms(frame.atomic_numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    set_marks(atoms, frame.marks)
    rows = comparison.atoms_of(i)
    predicted = {name: value[QUANTITIES[name].choose(i, rows)] for name, value in comparison.values.items()}
    for prefix, values in (("predicted", predicted), ("reference", frame.values)):
        for name, value in values.items():
            if np.isfinite(value).all():
                where = QUANTITIES[name].choose(atoms.info, atoms.arrays)
                value = np.asarray(value)
                if QUANTITIES[name].per_atom and value.ndim > 2:  # a row of numbers for each atom
                    value = value.reshape(len(value), -1)
                where[f"{prefix}_{name}"] = value if value.ndim else value.item()
    if comparison.uncertainty is not None:
        atoms.info["predicted_energy_uncertainty"] = float(comparison.uncertainty[i] * len(atoms))
    atoms.info["source_file"] = str(frame.file)
    atoms.info["source_index"] = frame.index
    if frame.config_type:
        atoms.info["config_type"] = frame.config_type
    return atoms
