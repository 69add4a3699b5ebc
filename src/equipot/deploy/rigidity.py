"""Last-layer prediction rigidity (LLPR): how uncertain a model's energies are, calibrated on held-out frames.

An energy is linear in what the last layer is given: E = w·F + constants, F = Σ_i f_i over the atoms. With
C = Σ_A v_A (F_A/N_A)(F_A/N_A)ᵀ over the training set, the Hessian by w of the loss of energies per atom (v_A
is the weight of frame A), the variance of E is σ² = α² Fᵀ(C + ς²)⁻¹F.
Source: F. Bigi, S. Chong, M. Ceriotti, F. Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024), eq. 24.
"""

import io
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import erf
from scipy.stats import spearmanr

from equipot.compile import KernelBuildError
from equipot.config import DataConfig, load_config
from equipot.data.dataset import GraphDataset
from equipot.data.load import load_datasets
from equipot.data.progress import track
from equipot.data.splits import Split
from equipot.data.text import counted
from equipot.deploy.checkpoint import Checkpoint
from equipot.deploy.structure import Structure
from equipot.deploy.uncertainty import uncertainties
from equipot.engine.library import Engine
from equipot.engine.program import Program
from equipot.errors import DataError, EquipotError, ModelFileError
from equipot.graph import edge_vectors
from equipot.quantities import ENERGY, LABELS
from equipot.run_directory import RunDirectory

log = logging.getLogger("equipot")

# Times the largest eigenvalue of C. Below the first, features are rounding of a network in float32.
REGULARISERS = np.logspace(-10, 0, 21)
_FEW = 10


@dataclass(frozen=True)
class Energies:
    """S frames with an energy."""

    features: NDArray[np.float64]  # (S, K) eV/atom: of the last layer, summed over the atoms and divided by N
    errors: NDArray[np.float64]  # (S,) eV/atom, predicted − reference
    weights: NDArray[np.float64]  # (S,) in the loss


@dataclass(frozen=True)
class Rigidity:
    """``factor`` (K, K), lower triangular: σ = |R F| eV; and ``figures`` of its calibration."""

    factor: NDArray[np.float64]
    figures: dict[str, float]


Measure = Callable[[Program], Rigidity]


def rigidity_of_run(checkpoint: Checkpoint, level: str | None, config: Path | None = None) -> Measure:
    """A function that measures a program of the checkpoint's model on the frames it was trained with.

    ``level``: only frames of this level of theory; None: the only one. ``config``: the YAML of the training,
    where the data lie elsewhere by now.

    Raises:
        ModelFileError: the checkpoint does not lie in the run directory of its training.
        DataError: its data are gone or have changed; in the function, ``config`` has other labels or units.
    """
    run = RunDirectory.of_checkpoint(checkpoint.path)
    if not run.split.is_file():
        raise ModelFileError(
            f"{checkpoint.path}: an uncertainty needs the frames of the training, but there is no "
            f"{run.split} that names them. Deploy from the run directory."
        )
    data: DataConfig = checkpoint.config.data if config is None else load_config(config).data
    try:
        split, species = Split.load(run.split), checkpoint.potential.species
        sets = load_datasets(data, checkpoint.potential.cutoff, split, kept=species)
    except EquipotError as error:
        raise DataError(
            f"An uncertainty needs the frames of the training: {error} If they lie elsewhere now, name the "
            "YAML that says where by --config."
        ) from None
    types = np.array([list(species).index(symbol) for symbol in sets.species])

    def measure(program: Program) -> Rigidity:
        program.add_uncertainty(torch.eye(program.feature_width, dtype=torch.float64))
        engine = engine_of(program, checkpoint.path)
        train, validation = (
            collect(engine, dataset, types, level, name)
            for name, dataset in (("training", sets.train), ("validation", sets.validation))
        )
        if config is not None:
            _require_same_energies(validation, checkpoint, config)
        return calibrated(train, validation)

    return measure


def _require_same_energies(validation: Energies, checkpoint: Checkpoint, config: Path) -> None:
    """Raises DataError where another file of settings has other labels or units than the training."""
    found, before = float(np.sqrt(np.mean(validation.errors**2))), checkpoint.validation.get("energy_rmse")
    if before is not None and found > 2 * before + 1e-3:
        raise DataError(
            f"By {config} the energies of the validation frames are off by {1e3 * found:.3g} meV/atom (RMS); "
            f"in the training by {1e3 * before:.3g}. It must have the labels and units of the training."
        )


def collect(
    engine: Engine, dataset: GraphDataset, types: NDArray, level: str | None = None, name: str = "data"
) -> Energies:
    """The frames of a set that have an energy with a weight; ``types``: the model's, of the set's species.

    Raises:
        DataError: there is none.
    """
    columns, column = dataset.columns, LABELS.index(ENERGY.name)
    weights = columns.weight * columns.label_weights[:, column] * columns.known(ENERGY.name)
    if level is not None and len(dataset.levels) > 1:
        weights = weights * (columns.level == level)
    rows = np.flatnonzero(weights > 0)
    if not len(rows):
        raise DataError(
            f"An uncertainty needs energies, but none of the {counted(len(weights), 'frame')} in the {name} "
            "set has one" + (f" of the level '{level}'." if level else ".")
        )
    features, energies = np.empty((len(rows), engine.feature_width)), np.empty(len(rows))
    for place, row in enumerate(track(rows.tolist(), f"features of the {name} set", len(rows))):
        graph = dataset[row]
        vectors, index = edge_vectors(graph).numpy(), graph.edge_index.numpy()
        found = engine.evaluate_edges(vectors, index, types[graph.atom_types.numpy()])
        features[place], energies[place] = found.features.sum(axis=0), found.atom_energies.sum()
    num_atoms = columns.num_atoms[rows]
    errors = (energies - columns.energy[rows]) / num_atoms
    return Energies(features / num_atoms[:, None], errors, weights[rows])


def calibrated(train: Energies, validation: Energies) -> Rigidity:
    """Regulariser and α² by the likelihood of the validation errors, which for a given ς² is largest at
    α² = mean(error²/ (Fᵀ(C + ς²)⁻¹F)).

    Raises:
        DataError: no validation frame whose energy the last layer contributes to, or errors of zero.
    """
    scaled = train.features * np.sqrt(train.weights)[:, None]
    covariance = scaled.T @ scaled
    eigenvalues, vectors = np.linalg.eigh(covariance)
    counts = np.abs(validation.features).max(axis=1) > 0  # an isolated atom of Allegro has no features
    errors, squares = validation.errors[counts], (validation.features[counts] @ vectors) ** 2
    if not errors.any() or not eigenvalues[-1] > 0:
        raise DataError(
            "An uncertainty cannot be calibrated: the energies of the validation set have no errors, or do "
            "not depend on the model's last layer."
        )
    best = (np.inf, 0.0, 0.0)
    for relative in REGULARISERS:
        rigidity = squares @ (1 / (np.maximum(eigenvalues, 0) + relative * eigenvalues[-1]))
        alpha2 = np.mean(errors**2 / rigidity)
        best = min(best, (np.log(alpha2 * rigidity).mean(), relative, alpha2))  # −2 log likelihood + constant
    _, relative, alpha2 = best
    regularised = covariance + relative * eigenvalues[-1] * np.eye(len(covariance))
    factor = solve_triangular(np.linalg.cholesky(regularised / alpha2), np.eye(len(covariance)), lower=True)
    sigma = np.linalg.norm(validation.features[counts] @ factor.T, axis=1)
    figures = {
        "features": len(covariance),
        "training_frames": len(train.errors),
        "validation_frames": len(errors),
        "regulariser": float(relative),
        "alpha": float(np.sqrt(alpha2)),
        **agreement(sigma, errors),
    }
    if relative == REGULARISERS[-1]:
        log.warning(
            "The largest regulariser explains the validation errors best: they do not follow from how far a "
            "frame is from the training set, so the uncertainty says little about single frames."
        )
    if len(errors) < _FEW:
        log.warning("The uncertainty is calibrated on %s only.", counted(len(errors), "validation frame"))
    return Rigidity(factor, figures)


def agreement(sigma: NDArray, errors: NDArray) -> dict[str, float]:
    """What deviations ``sigma`` (S,) say of ``errors`` (S,): RMS of both, and of their ratio, and more.

    ``miscalibration``: mean difference between the fraction of errors within a quantile of the normal
    distributions and the quantile, 0 to 0.5. ``rank_correlation``: Spearman's, of sigma and |errors|.
    """
    ratios = np.abs(errors) / sigma
    expected = np.sort(erf(ratios / np.sqrt(2)))
    found = (np.arange(len(errors)) + 0.5) / len(errors)
    varied = len(errors) > 2 and np.ptp(sigma) > 0 and np.ptp(errors) > 0
    rank = {"rank_correlation": float(spearmanr(sigma, np.abs(errors)).statistic)} if varied else {}
    return rank | {
        "predicted_rms": float(np.sqrt(np.mean(sigma**2))),
        "error_rms": float(np.sqrt(np.mean(errors**2))),
        "ratio_rms": float(np.sqrt(np.mean(ratios**2))),
        "miscalibration": float(np.abs(expected - found).mean()),
    }


def add_uncertainty(
    program: Program | None, measure: Measure, structures: Sequence[Structure], path: Path
) -> dict[str, Any]:
    """Give a program its uncertainty; `Metadata.uncertainty`, with that of ``structures``.

    Raises:
        ModelFileError: the architecture does not say what its last layer is given.
        DataError: as `collect` and `calibrated`.
    """
    if program is None or not program.feature_width:
        raise ModelFileError(
            "This architecture has no program with a last layer, so it cannot have an uncertainty."
        )
    rigidity = measure(program)
    program.add_uncertainty(torch.from_numpy(rigidity.factor))
    return rigidity.figures | {"references": uncertainties(engine_of(program, path), structures)}


def engine_of(program: Program, path: Path) -> Engine:
    """A program alone in a file; ``path`` stands in messages. Raises ModelFileError without an engine."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model/extra/format_version", "1")
        for name, content in program.files().items():
            archive.writestr(f"model/{name}", content)
    try:
        return Engine(path, buffer.getvalue())
    except KernelBuildError as error:
        raise ModelFileError(f"An uncertainty needs equipot's engine, which is not here: {error}") from None
