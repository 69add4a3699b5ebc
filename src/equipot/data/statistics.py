"""Numbers about the training set that a model needs: reference energies, neighbors, size of the forces."""

import dataclasses
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from equipot.data.dataset import GraphDataset
from equipot.data.frames import Frame
from equipot.data.progress import track
from equipot.data.species import pair_name
from equipot.errors import DataError
from equipot.graph import collate, edge_vectors
from equipot.quantities import QUANTITIES

logger = logging.getLogger("equipot")

_SIZE_OF_BOX = 0.01  # eV: what the size of a box may change in the energy of the atom in it

MODES = ("auto", "isolated_atoms", "least_squares", "none")


@dataclass(frozen=True)
class LevelStatistics:
    """Reference energies of one level of theory, as in ``Statistics``."""

    atomic_energies: list[float]
    atomic_energies_source: str
    energy_residual_rms: float | None


@dataclass(frozen=True)
class Statistics:
    """What the training set says; energies in eV, forces in eV/Å.

    With several levels of theory the reference energies here are those of the first; ``levels`` has all.
    """

    species: list[str]
    atomic_energies: list[float]  # eV, one per species
    atomic_energies_source: str  # "isolated atoms", "least squares", "given" or "none"
    energy_residual_rms: float | None  # eV/atom: RMS of (energy - sum of atomic energies) / atoms
    avg_num_neighbors: float  # edges per atom
    force_rms: float | None  # eV/Å, over components
    num_frames: int
    num_atoms: int
    atoms_per_species: list[int]
    num_labels: dict[str, int]  # frames or atoms with a label, of each quantity that has any
    levels: dict[str, LevelStatistics] = field(default_factory=dict)  # empty unless there are several

    def to_dict(self) -> dict:
        """Plain types only; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: Mapping) -> "Statistics":
        """Inverse of ``to_dict``.

        Raises:
            DataError: a field is missing or unknown.
        """
        names = {field.name for field in dataclasses.fields(Statistics)}
        values = {"levels": {}, **values}  # which the first checkpoints do not have
        former = {"energy": "num_energies", "forces": "num_forces", "stress": "num_stresses"}
        if former["energy"] in values:
            values["num_labels"] = {name: values[key] for name, key in former.items() if values.get(key)}
            values = {key: value for key, value in values.items() if key not in former.values()}
        if set(values) != names:
            raise DataError(
                f"These are not equipot statistics: missing {sorted(names - set(values))}, "
                f"unknown {sorted(set(values) - names)}."
            )
        levels = {name: LevelStatistics(**level) for name, level in values["levels"].items()}
        return Statistics(**{**values, "levels": levels})


def compute_statistics(
    dataset: GraphDataset,
    isolated_frames: Sequence[Frame] = (),
    mode: str | Mapping[str, float] = "auto",
    unseen: Collection[str] = (),
) -> Statistics:
    """Statistics of a training set.

    Reference energies by ``mode``: ``isolated_atoms`` takes the energies of ``isolated_frames``;
    ``least_squares`` fits the energies per atom, and where the compositions leave them undetermined stays
    closest to the mean energy per atom; ``auto`` takes isolated atoms if every species has one and fits
    otherwise, if there are energies; ``none`` is zero; a mapping gives them, in eV. Each level of theory has
    its own. Species that are ``unseen``, which need not occur, have 0.

    Raises:
        DataError: an empty data set, no edge within the cutoff, a species without atoms or without a
            reference energy, a level without frames, or no energies to fit.
    """
    if len(dataset) == 0:
        raise DataError("The training set has no frames.")
    columns = dataset.columns
    counts = columns.composition_of([atomic_numbers[symbol] for symbol in dataset.species])
    seen = np.array([symbol not in unseen for symbol in dataset.species])
    _check_every_species_occurs(dataset.species, counts, seen)
    num_atoms = int(counts.sum())
    num_edges = int(dataset.num_edges.sum())
    if num_edges == 0:
        raise DataError(
            f"No atom of the training set has a neighbor within the cutoff of {dataset.cutoff} Å. Check "
            "data.units.length and model.cutoff."
        )
    several = len(dataset.levels) > 1
    levels = {
        level: _level_statistics(dataset, counts, isolated_frames, mode, level if several else None, seen)
        for level in (dataset.levels if several else [""])
    }
    first = next(iter(levels.values()))
    known = zip(QUANTITIES.values(), columns.label_counts.sum(axis=0).tolist(), strict=True)
    return Statistics(
        species=list(dataset.species),
        atomic_energies=first.atomic_energies,
        atomic_energies_source=first.atomic_energies_source,
        energy_residual_rms=first.energy_residual_rms,
        avg_num_neighbors=num_edges / num_atoms,
        force_rms=columns.force_rms,
        num_frames=len(dataset),
        num_atoms=num_atoms,
        atoms_per_species=[int(count) for count in counts.sum(axis=0)],
        num_labels={quantity.name: count // quantity.components for quantity, count in known if count},
        levels=levels if several else {},
    )


def shortest_distances(dataset: GraphDataset) -> dict[str, float]:
    """Å, the closest that atoms of two elements come, by ``pair_name``. Reads every frame once.

    Pairs that are nowhere within the cutoff are left out.
    """
    species = dataset.species
    at_once = int(np.clip(1e6 / max(dataset.num_edges.mean(), 1), 1, 64))  # joined, for speed
    squared = torch.full((len(species) ** 2,), torch.inf, dtype=torch.float64)
    starts = range(0, len(dataset), at_once)
    for start in track(starts, "shortest distances", len(dataset), size=lambda _: at_once):
        graph = collate([dataset[i] for i in range(start, min(start + at_once, len(dataset)))])
        vectors = edge_vectors(graph)
        center, neighbor = graph.atom_types[graph.edge_index]
        squared.scatter_reduce_(0, center * len(species) + neighbor, (vectors * vectors).sum(dim=1), "amin")
    found = zip(product(species, species), squared.sqrt().tolist(), strict=True)  # edges go both ways
    return {pair_name(*pair): distance for pair, distance in found if distance < np.inf}


def _level_statistics(
    dataset: GraphDataset,
    counts: NDArray,
    isolated_frames: Sequence[Frame],
    mode: str | Mapping[str, float],
    level: str | None,
    seen: NDArray,
) -> LevelStatistics:
    """Of the frames of one of several levels, or of all frames for None; 0 for species that are not seen."""
    columns = dataset.columns
    of_level = np.full(len(dataset), True) if level is None else columns.level == level
    labelled = of_level & columns.known("energy")
    energies = columns.energy[labelled]
    isolated = [frame for frame in isolated_frames if level is None or frame.level == level]
    species = [symbol for symbol, known in zip(dataset.species, seen, strict=True) if known]
    if level is not None:
        _check_level(species, level, counts[of_level][:, seen])
    reference = np.zeros(len(seen))
    try:
        reference[seen], source = _atomic_energies(
            species, counts[labelled][:, seen], energies, isolated, mode
        )
    except DataError as error:
        raise error if level is None else DataError(f"Level {level}: {error}") from None
    return LevelStatistics(
        atomic_energies=[float(energy) for energy in reference],
        atomic_energies_source=source,
        energy_residual_rms=_residual_rms(counts[labelled], energies, reference),
    )


def _check_level(species: Sequence[str], level: str, counts: NDArray) -> None:
    if len(counts) == 0:
        raise DataError(
            f"No training frame is of the level {level}; its few frames may all be in the validation set. "
            "Take more, or give validation files of their own."
        )
    absent = [symbol for symbol, count in zip(species, counts.sum(axis=0), strict=True) if count == 0]
    if absent:
        logger.warning(
            "No training frame of the level %s contains %s: do not use the model for them at this level.",
            level, ", ".join(absent),
        )  # fmt: skip


def fit_atomic_energies(counts: NDArray, energies: NDArray) -> NDArray[np.float64]:
    """Least-squares energies per species, (T,) eV.

    Minimises the sum over frames of ((energy - counts · x) / atoms)², the weighting of the training loss.
    With single or proportional compositions many x are equally good; the one closest to the mean energy per
    atom is taken.

    Args:
        counts: (F, T), atoms of each species in each frame.
        energies: (F,), eV.
    """
    atoms = counts.sum(axis=1)
    per_atom = energies / atoms
    mean = per_atom.mean()
    deviation, *_ = np.linalg.lstsq(counts / atoms[:, None], per_atom - mean, rcond=1e-10)
    return mean + deviation


def _check_every_species_occurs(species: Sequence[str], counts: NDArray, seen: NDArray) -> None:
    missing = seen & (counts.sum(axis=0) == 0)
    absent = [symbol for symbol, found in zip(species, missing, strict=True) if found]
    if absent:
        raise DataError(
            f"No training frame contains {', '.join(absent)}, which data.species lists; a model cannot learn "
            "it. Remove it from the list or add frames."
        )


def _atomic_energies(species, counts, energies, isolated_frames, mode) -> tuple[NDArray, str]:
    if isinstance(mode, Mapping):
        return _given(species, mode), "given"
    if mode not in MODES:
        raise DataError(f"data.atomic_energies is '{mode}'; expected {', '.join(MODES)} or a mapping.")
    if mode == "none":
        return np.zeros(len(species)), "none"
    if mode in ("auto", "isolated_atoms"):
        found = _isolated_energies(isolated_frames)
        missing = [symbol for symbol in species if symbol not in found]
        if not missing:
            return np.array([found[symbol] for symbol in species]), "isolated atoms"
        if mode == "isolated_atoms":
            raise DataError(_no_isolated_atom(missing))
        if found:
            logger.warning(
                "Isolated atoms give energies for %s but not for %s; all reference energies are fitted.",
                ", ".join(s for s in species if s in found) or "none of the species", ", ".join(missing),
            )  # fmt: skip
    if len(energies) == 0 and mode == "auto":
        return np.zeros(len(species)), "none"  # whether energies are missed is decided by the loss
    if len(energies) == 0:
        raise DataError(
            "No training frame has an energy, so reference energies cannot be fitted. Check "
            "data.labels.energy, or set data.atomic_energies to none or to a mapping {H: -13.6, ...}."
        )
    return fit_atomic_energies(counts, energies), "least squares"


def _given(species: Sequence[str], energies: Mapping[str, float]) -> NDArray:
    missing = [symbol for symbol in species if symbol not in energies]
    if missing:
        raise DataError(
            f"data.atomic_energies gives no energy for {', '.join(missing)}; it has {', '.join(energies)}."
        )
    return np.array([float(energies[symbol]) for symbol in species])


def _isolated_energies(frames: Sequence[Frame]) -> dict[str, float]:
    found: dict[str, tuple[float, Frame]] = {}
    # Of those that are alone in a box the largest box counts, and only where none is marked.
    for frame in sorted(frames, key=lambda f: (f.is_alone_in_box, -abs(np.linalg.det(f.cell)))):
        if frame.energy is None:
            continue
        symbol = chemical_symbols[frame.atomic_numbers[0]]
        tolerance = _SIZE_OF_BOX if frame.is_alone_in_box else 1e-4
        if symbol in found and abs(found[symbol][0] - frame.energy) > tolerance:
            raise DataError(
                f"Two isolated {symbol} atoms have different energies: {found[symbol][0]} eV "
                f"({found[symbol][1].where}) and {frame.energy} eV ({frame.where}). Keep one of them."
            )
        found.setdefault(symbol, (frame.energy, frame))
    return {symbol: energy for symbol, (energy, _) in found.items()}


def _no_isolated_atom(missing: Sequence[str]) -> str:
    return (
        "data.atomic_energies is isolated_atoms, but the training files have no isolated atom with an energy "
        f"for {', '.join(missing)}. Add a frame with that one atom and config_type=IsolatedAtom (or without "
        "pbc), or use auto, least_squares or a mapping."
    )


def _residual_rms(counts: NDArray, energies: NDArray, reference: NDArray) -> float | None:
    if len(energies) == 0:
        return None
    return float(np.sqrt(np.mean(((energies - counts @ reference) / counts.sum(axis=1)) ** 2)))
