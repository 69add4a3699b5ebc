"""What is in a file, in numbers: for `equipot data inspect`."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from equipot.data.quality.collect import Collected
from equipot.data.quality.structures import nearest_pair
from equipot.data.quality.units import implausibilities, pressure
from equipot.data.text import naming_options
from equipot.quantities import LABELS

_MAX_DISTANCE_FRAMES = 200


@dataclass(frozen=True)
class Summary:
    """One file."""

    path: str
    format: str
    num_frames: int
    atoms: tuple[int, int]  # fewest and most in a frame
    species: dict[str, int]  # atoms of each element
    periodicity: dict[str, int]  # "T T T" -> frames
    groups: dict[str, int]  # config_type -> frames
    names: dict[str, dict[str, int]]  # kind of label -> name -> frames
    labelled: dict[str, int]  # kind of label -> frames that have it under the name asked for
    values: dict[str, NDArray[np.float64]]  # quantity with its unit -> its values
    suspicions: list[str]  # of wrong units
    problems: list[str]  # frames that cannot be used

    def to_dict(self) -> dict:
        """Plain types only; of the values their smallest, mean, largest and standard deviation."""
        statistics = {
            name: {"min": v.min(), "mean": v.mean(), "max": v.max(), "std": v.std(), "count": len(v)}
            for name, v in self.values.items()
        }
        plain = {name: {key: float(x) for key, x in found.items()} for name, found in statistics.items()}
        return {**vars(self), "atoms": list(self.atoms), "values": plain}


def summarize(file: Collected) -> Summary:
    """Numbers of one file."""
    frames = file.frames
    sizes = [frame.num_atoms for frame in frames]
    numbers = np.concatenate([frame.atomic_numbers for frame in frames]) if frames else np.empty(0, int)
    values, counts = np.unique(numbers, return_counts=True)
    species = {chemical_symbols[z]: int(count) for z, count in zip(values, counts, strict=True)}
    return Summary(
        path=str(file.path),
        format=file.format,
        num_frames=len(frames),
        atoms=(min(sizes, default=0), max(sizes, default=0)),
        species=species,
        periodicity=dict(Counter(" ".join("FT"[int(p)] for p in frame.pbc) for frame in frames)),
        groups=dict(Counter(frame.config_type for frame in frames if frame.config_type is not None)),
        names={kind: dict(found.most_common()) for kind, found in file.names.items()},
        labelled={kind: sum(kind in f.values for f in frames) for kind in LABELS},
        values=_values(file),
        suspicions=[naming_options(words) for words in implausibilities(frames)],
        problems=[problem.message for problem in file.problems],
    )


def _values(file: Collected) -> dict[str, NDArray[np.float64]]:
    frames = file.frames
    step = -(-len(frames) // _MAX_DISTANCE_FRAMES) or 1
    nearest = [nearest_pair(frame)[1] for frame in frames[::step] if frame.num_atoms > 1 or frame.pbc.any()]
    forces = [np.linalg.norm(frame.forces, axis=1) for frame in frames if frame.forces is not None]
    found = {
        "atoms": [frame.num_atoms for frame in frames],
        "volume per atom (Å³)": [
            abs(np.linalg.det(frame.cell)) / frame.num_atoms for frame in frames if frame.pbc.all()
        ],
        "nearest distance (Å)": [distance for distance in nearest if np.isfinite(distance)],
        "energy per atom (eV)": [f.energy / f.num_atoms for f in frames if f.energy is not None],
        "force (eV/Å)": np.concatenate(forces) if forces else [],
        "pressure (GPa)": [pressure(frame) for frame in frames if frame.stress is not None],
        "weight": [frame.weight for frame in frames] if any(f.weight != 1 for f in frames) else [],
    }
    return {name: np.array(values, dtype=np.float64) for name, values in found.items() if len(values)}
