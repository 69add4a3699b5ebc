"""Cutting files into sets for training, validation and test: what `equipot data split` does."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.calculator import all_properties
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from equipot.config.data import LabelsConfig, Parsing, Source, UnitsConfig
from equipot.data.digests import file_digest
from equipot.data.formats import open_contents
from equipot.data.found_labels import check_labels, numbers_beside
from equipot.data.frames import Frame, set_marks
from equipot.data.pool import Pool
from equipot.data.progress import track
from equipot.data.readers import expand_paths, read_source, require_known_labels
from equipot.data.splits import FrameId, Split
from equipot.data.stated_units import names_of_units
from equipot.data.text import KEY_ADVICE, counted
from equipot.errors import DataError
from equipot.files import atomic_write
from equipot.quantities import FIELD, KEYS, QUANTITIES
from equipot.units import stress_to_voigt

logger = logging.getLogger("equipot")

SETS = ("train", "validation", "test")

_DEFAULT_PARSING = Parsing()
# Of a calculation, beside energies and their derivatives; ASE takes them from files by these names.
_OTHER_RESULTS = {"dipole", "charges", "magmom", "magmoms"}


def split_files(
    paths: Sequence[str | Path],
    output: Path,
    sizes: Mapping[str, str],
    labels: LabelsConfig,
    units: UnitsConfig,
    seed: int = 0,
    by_group: bool = False,
    missing: str = "error",
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
) -> Split:
    """Write ``train.xyz``, ``validation.xyz`` and ``test.xyz`` in eV and Å, and ``split.json``.

    What else the files have, labels of outputs, groups or constraints, is kept as it is.
    Equal structures come into the same set. Isolated atoms are reference energies: they all go to ``train``,
    beside its number. A set of size 0 is not written.

    Args:
        paths: files, patterns, folders of a format.
        output: a folder.
        sizes: of each of the sets, a number of frames (``"100"``) or a fraction (``"0.1"``).
        labels, units, missing, format_name: of the files, as in the section ``data``.
        seed: of the drawing.
        by_group: draw from the frames of each ``config_type`` in proportion.

    Raises:
        DataError: a file cannot be read, a label is missing; sizes that are wrong or too large; files that
            would be replaced.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output} is a file. Give a folder with --output.")
    for name in (*(f"{name}.xyz" for name in SETS), "split.json"):
        if (output / name).exists():
            raise DataError(f"{output / name} exists. Give another folder with --output, or remove it.")
    files = tuple(expand_paths(paths, format_name))
    require_known_labels(files, format_name)
    # A field is a label in stores; that of other files is kept with all else.
    field = FIELD.name if FIELD.name in QUANTITIES else None
    labels = LabelsConfig(**{FIELD.name: field} | labels.model_dump())
    source = Source(files, labels, units, format=format_name, missing=missing, parsing=parsing)
    pool, candidates = read_source(source)
    check_labels(source, pool, candidates, required=(), advice=KEY_ADVICE)
    isolated = pool.columns.isolated
    numbers = _numbers(sizes, int((~isolated).sum()))
    groups = np.array([frame.config_type or "" for frame in pool]) if by_group else np.zeros(len(pool), int)
    chosen = draw_sets(pool.columns.fingerprint, groups, ~isolated, numbers, seed)
    chosen["train"] = np.sort(np.concatenate([np.flatnonzero(isolated), chosen["train"]]))
    output.mkdir(parents=True, exist_ok=True)
    _write(output, pool, chosen, source)
    ids = pool.ids()
    sets = {name: tuple(ids[row] for row in rows) for name, rows in chosen.items()}
    split = Split(**sets, seed=seed, file_digests={file: file_digest(file) for file in pool.files})
    split.save(output / "split.json")
    unused = len(pool) - sum(len(rows) for rows in chosen.values())
    if unused:
        logger.info("%s in no set.", counted(unused, "frame"))
    return split


def draw_sets(
    fingerprint: NDArray[np.uint64],
    groups: NDArray,
    usable: NDArray[np.bool_],
    numbers: Mapping[str, int],
    seed: int,
) -> dict[str, NDArray[np.int64]]:
    """Frames of each set, ascending; frames with the same fingerprint are in one set.

    Args:
        fingerprint: (F,)
        groups: (F,), each set has its share of every group, as far as whole numbers allow.
        usable: (F,), the others are in no set.
        numbers: frames of each set; where equal frames have to stay together, test and validation may come
            short of theirs, and train has at most as many as asked for.
        seed: of the drawing.
    """
    random = np.random.default_rng(seed)
    rows = np.flatnonzero(usable)
    clusters = [rows[part] for part in _equal(fingerprint[rows])]
    clusters = [clusters[i] for i in random.permutation(len(clusters))]
    if len(set(groups[rows].tolist())) > 1:
        # Group by group: cuts in proportion along this order take from each its share.
        clusters.sort(key=lambda cluster: str(groups[cluster[0]]))
    chosen: dict[str, list[int]] = {name: [] for name in numbers}
    due = dict.fromkeys(numbers, 0.0)
    total = max(sum(numbers.values()), len(rows))
    for cluster in clusters:
        # The set that is furthest behind what is its share by now, if there is room for the cluster.
        for name in numbers:
            due[name] += len(cluster) * numbers[name] / total
        room = [name for name in numbers if len(chosen[name]) + len(cluster) <= numbers[name]]
        if room:
            behind = max(room, key=lambda name: due[name] - len(chosen[name]))
            chosen[behind] += cluster.tolist()
    return {name: np.array(sorted(members), dtype=np.int64) for name, members in chosen.items()}


def _equal(values: NDArray) -> list[NDArray[np.int64]]:
    """Places of equal values."""
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1) if len(values) else []


def _numbers(sizes: Mapping[str, str], available: int) -> dict[str, int]:
    numbers = {name: _number(name, size, available) for name, size in sizes.items()}
    if numbers["train"] == 0:
        raise DataError("The set for training would be empty; give it a larger number with --train.")
    asked = ", ".join(f"{name} {size}" for name, size in sizes.items())
    fractions = sum(float(size) for size in sizes.values() if "." in size)
    if fractions > 1 + 1e-9:
        raise DataError(f"The fractions add up to {fractions:g}, more than all frames ({asked}).")
    for name, size in sizes.items():
        if numbers[name] == 0 and float(size) > 0:
            raise DataError(
                f"--{name} {size} of {available} frames is none. Give a number of frames, or 0 for no set."
            )
    excess = sum(numbers.values()) - available
    if abs(fractions - 1) < 1e-9 and abs(excess) < len(sizes):
        numbers["train"] -= excess  # rounded up or down in each
        excess = 0
    if excess > 0:
        raise DataError(
            f"There are {available} frames that are not isolated atoms, {excess} fewer than asked for "
            f"({asked})."
        )
    return numbers


def _number(name: str, size: str, available: int) -> int:
    try:
        value = float(size) if "." in size else int(size)
    except ValueError:
        value = -1
    if value < 0 or (isinstance(value, float) and value > 1):
        raise DataError(f"--{name} is '{size}'; expected a number of frames, 100, or a fraction, 0.1.")
    return value if isinstance(value, int) else round(value * available)


def _write(output: Path, pool: Pool, chosen: Mapping[str, NDArray], source: Source) -> None:
    """The sets, as one reading of the files comes to their frames."""
    ids = pool.ids()
    places = {ids[row]: (name, int(row)) for name, rows in chosen.items() for row in rows}
    kept: set[str] = set()
    with ExitStack() as stack:
        streams = {}
        for name, rows in chosen.items():
            if len(rows):
                temporary = stack.enter_context(atomic_write(output / f"{name}.xyz"))
                streams[name] = stack.enter_context(temporary.open("w"))
        for identity, structure in track(_originals(source), "writing", len(pool)):
            if identity in places:
                name, row = places[identity]
                atoms = labelled_atoms(pool[row], structure, source.labels)
                kept |= numbers_beside(structure, source.labels)
                ase.io.write(streams[name], atoms, format="extxyz")
    if kept:
        logger.info("Kept as the files have it, its units too: %s.", ", ".join(sorted(kept)))


def _originals(source: Source) -> Iterator[tuple[FrameId, ase.Atoms | Frame]]:
    """Files and numbers of frames, and what they were made of; also of those that did not converge."""
    parsing = replace(source.parsing, keep_unconverged=True)  # that some are left out was said
    for path in source.path:
        for index, structure in open_contents(path, source.format, parsing).numbered:
            yield (str(path), index), structure


def labelled_atoms(
    frame: Frame, of: ase.Atoms | Frame | None = None, labels: LabelsConfig | None = None
) -> ase.Atoms:
    """The frame for ASE, its labels in a calculator under ASE's names.

    With all else that the structure has which it was made ``of``, where ``labels`` were read and units may be
    stated, as it is.
    """
    atoms, results = ase.Atoms(frame.atomic_numbers, frame.positions, cell=frame.cell, pbc=frame.pbc), {}
    set_marks(atoms, frame.marks)
    if isinstance(of, ase.Atoms):
        read = {*labels.model_dump().values(), labels.weight, *(key.weight for key in KEYS.values())}
        gone = read | {"numbers", "positions", *names_of_units(of.info)}
        atoms.info = {name: value for name, value in of.info.items() if name not in gone}
        atoms.arrays |= {name: value.copy() for name, value in of.arrays.items() if name not in gone}
        atoms.set_constraint([*atoms.constraints, *of.constraints])
        others = {} if of.calc is None else of.calc.results
        results = {name: others[name] for name in _OTHER_RESULTS & others.keys() - read}
    known = {n: stress_to_voigt(v) if QUANTITIES[n].symmetric else v for n, v in frame.values.items()}
    results |= {name: known.pop(name) for name in list(known) if name in all_properties}
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    for name, value in known.items():
        if QUANTITIES[name].per_atom:
            atoms.arrays[name] = np.reshape(value, (len(atoms), -1))
        else:
            atoms.info[name] = value
    for name, weight in frame.label_weights.items():
        if name in frame.values:
            atoms.info[QUANTITIES[name].keys[0].weight] = weight
    if frame.weight != 1:
        atoms.info["config_weight"] = frame.weight
    if frame.config_type is not None:
        atoms.info["config_type"] = frame.config_type
    return atoms
