"""Reading structures of any format (``equipot.data.formats``), with labels found by name."""

import difflib
import glob
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from equipot.config.data import DataConfig, LabelsConfig, Parsing, Source, UnitsConfig
from equipot.data.formats import find_format, open_contents
from equipot.data.frames import NO_LABELS, Frame, frame_of, label_candidates
from equipot.data.pool import MemoryPart, Part, Pool, StorePart
from equipot.data.progress import track
from equipot.data.store.file import Store
from equipot.errors import DataError
from equipot.quantities import LABELS, QUANTITIES, USUAL

logger = logging.getLogger("equipot")

_ADVICE = "Set data.labels.{kind} to the name the file uses, or to null to do without."
_DEFAULT_LABELS = LabelsConfig()
_DEFAULT_UNITS = UnitsConfig()
_DEFAULT_PARSING = Parsing()

Paths = str | Path | Sequence[str | Path]


def named_labels(names: Mapping[str, str], others: LabelsConfig = _DEFAULT_LABELS) -> LabelsConfig:
    """Names given as words, ``none`` for a label that is not to be read; those not given as in ``others``."""
    given = {kind: None if name == "none" else name for kind, name in names.items()}
    return LabelsConfig(**{**others.model_dump(), **given})


def named_parsing(species: str | None, keep_unconverged: bool) -> Parsing:
    """From words: ``HW=H,OW=O``.

    Raises:
        DataError: not pairs of a label and a chemical symbol.
    """
    pairs = [pair.split("=") for pair in species.split(",")] if species else []
    for pair in pairs:
        if len(pair) != 2 or not pair[0] or pair[1] not in atomic_numbers:
            raise DataError(
                f"--species-map must be as HW=H,OW=O: labels and chemical symbols; found '{'='.join(pair)}'."
            )
    return Parsing(dict(pairs), keep_unconverged)


def read_frames(
    paths: Paths,
    labels: LabelsConfig = _DEFAULT_LABELS,
    units: UnitsConfig = _DEFAULT_UNITS,
    *,
    required: Iterable[str] = USUAL,
    need_any: bool = False,
    advice: str = _ADVICE,
    parsing: Parsing = _DEFAULT_PARSING,
) -> list[Frame]:
    """Read, check and convert every frame of one or more files.

    A label may be missing in some frames (they get None, and a warning says how many). Missing in all of
    them, it is an error if it is ``required`` or if its name is not equipot's default; otherwise it is not
    read, and one line says so. Isolated atoms are not counted as lacking a label.

    Args:
        paths: a file, a pattern such as ``data/*.xyz``, or a list of these; folders where a format is one.
        labels: the names of the quantities in the files (``data.labels``); a name of None is not read.
        units: energy and length units of the files (``data.units``).
        required: the labels that at least one frame must have.
        need_any: at least one frame must have at least one label.
        advice: what messages tell the user to do about a label ``{kind}`` that is not found.
        parsing: as ``data.species_map`` and ``data.keep_unconverged``.

    Raises:
        DataError: a missing or unreadable file, a file without frames, an unusable frame, a missing label;
            a file that names other units than ``units``.
    """
    files = [paths] if isinstance(paths, str | Path) else paths
    source = Source(tuple(Path(file) for file in files), labels, units, parsing=parsing)
    pool, candidates = read_source(source)
    check_labels(source, pool, candidates, required, need_any, advice)
    return list(pool)


def read_frame(data: DataConfig, file: str, index: int) -> Frame:
    """One frame of a file that ``data`` names, unlabelled, in the units of its entry.

    Raises:
        DataError: ``data`` does not name the file, or it has no such frame.
    """
    sources = [source for name in ("train", "validation", "test") for source in data.sources(name)]
    for source in sources:
        for path in expand_paths(source.path, source.format):
            if str(path) == file:
                for number, atoms in open_contents(path, source.format, source.parsing).numbered:
                    if number == index:
                        return frame_of(atoms, NO_LABELS, source.units, 1.0, file, index)
                raise DataError(f"{file} has no frame {index} (the first is 0).")
    raise DataError(f"The section `data` of the configuration does not name {file}.")


def read_source(source: Source) -> tuple[Pool, dict[str, set[str]]]:
    """All frames, and the names of what could be each quantity in them; stores stay on disk.

    Raises:
        DataError: a missing or unreadable file, an unusable frame, a file that names other units.
    """
    parts: list[Part] = []
    candidates: dict[str, set[str]] = {kind: set() for kind in LABELS}
    for path in expand_paths(source.path, source.format):
        contents = open_contents(path, source.format, source.parsing)
        check_units(path, contents.units, source.units)
        if find_format(path, source.format).name == "store":
            parts.append(StorePart(Store(path), source))
            for kind in LABELS:
                candidates[kind] |= {kind} if parts[-1].columns.known(kind).any() else set()
            continue
        frames = []
        for index, atoms in track(contents.numbered, f"reading {path.name}", contents.total):
            for kind, names in label_candidates(atoms).items():
                candidates[kind] |= names
            frame = frame_of(atoms, source.labels, source.units, source.weight, str(path), index)
            frames.append(replace(frame, level=source.level))
        parts.append(MemoryPart(frames))
    pool = Pool(parts)
    report_weights(source, pool)
    return pool, candidates


def check_units(path: Path, named: dict[str, str], units: UnitsConfig) -> None:
    """Raise DataError if a file names other units than those it is read in."""
    for kind, unit in named.items():
        if getattr(units, kind) != unit:
            raise DataError(
                f"{path} names {unit} as its unit of {kind}, but data.units.{kind} is "
                f"{getattr(units, kind)}. Set it to {unit}, for this entry alone: {{path: {path.name}, "
                f"units: {{{kind}: {unit}}}}}."
            )


def report_weights(source: Source, pool: Pool) -> None:
    """Say how many frames have a weight of their own."""
    weights = pool.columns.weight / source.weight
    weighted = int((weights != 1).sum())
    if weighted:
        logger.info(
            "%s: %d of %d frames have a weight '%s' of their own in the loss (%g to %g).",
            ", ".join(pool.files), weighted, len(pool), source.labels.weight, weights.min(), weights.max(),
        )  # fmt: skip


def expand_paths(paths: Paths, format_name: str | None = None) -> list[Path]:
    """Files in the order given, patterns replaced by their sorted matches; also folders that are a format's.

    Raises:
        DataError: a file does not exist, a pattern matches nothing, or a file is listed twice.
    """
    entries = [paths] if isinstance(paths, str | Path) else list(paths)
    files: list[Path] = []
    for entry in entries:
        path = Path(entry)
        # Not Path.glob, which matches hidden files (a write in progress) as well.
        matches = [path] if path.exists() else [Path(m) for m in sorted(glob.glob(str(path)))]  # noqa: PTH207
        if not matches:
            raise DataError(_missing_file(path))
        files += matches
    if not files:
        raise DataError("No structure file is given.")
    for path in files:
        if path.exists() and not (path.is_dir() or path.is_file()):
            raise DataError(f"{path} is a pipe or a device. Write what it gives to a file, and name that.")
        if path.is_dir() and find_format(path, format_name) is None:
            raise DataError(
                f"{path} is not a file, nor a folder of DeePMD-kit, VASP or LMDB. To read a folder's files, "
                f"write {path}/*.xyz; for DeePMD systems in it, {path}/*."
            )
    check_listed_once(files)
    return files


def check_listed_once(files: Sequence[Path]) -> None:
    """Raise DataError if a file is there twice."""
    seen: set[Path] = set()
    for path in files:
        if path.resolve() in seen:
            raise DataError(f"{path} is listed more than once; its frames would count twice.")
        seen.add(path.resolve())


def _missing_file(path: Path) -> str:
    if glob.has_magic(str(path)):
        return f"No file matches the pattern {path}."
    parent = path.parent
    if not parent.is_dir():
        return f"There is no file {path}: the folder {parent} does not exist."
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"There is no file {path}." + (f" Did you mean {parent / near[0]}?" if near else "")


def check_labels(
    source: Source,
    pool: Pool,
    candidates: dict[str, set[str]],
    required: Iterable[str] = USUAL,
    need_any: bool = False,
    advice: str = _ADVICE,
) -> None:
    """Check what labels the frames of a source have; arguments, messages and errors as ``read_frames``."""
    if need_any and not pool.columns.has.any():
        raise DataError(_no_label_at_all(source.labels, pool.files, candidates, advice))
    for kind in LABELS:
        name = getattr(source.labels, kind)
        if name is not None:
            _check_label(kind, name, pool, candidates[kind], kind in set(required), advice)


def _check_label(kind: str, name: str, pool: Pool, candidates: set[str], required: bool, advice: str) -> None:
    files, columns, quantity = pool.files, pool.columns, QUANTITIES[kind]
    molecules = ~columns.isolated if not columns.isolated.all() else np.ones(len(pool), dtype=bool)
    lacking = molecules & ~columns.known(kind)
    if kind != "energy" and columns.isolated.all():
        return  # their energies are all that is wanted of them
    if lacking.sum() == molecules.sum():
        if required or name != getattr(_DEFAULT_LABELS, kind):
            missing = f"{', '.join(files)}: no frame has a label '{name}' for the {kind}."
            raise DataError(f"{missing} {_found(kind, name, candidates)} {advice.format(kind=kind)}")
        periodic = columns.periodic[molecules].any()
        if not (periodic if quantity.needs_volume else quantity.usual or candidates):
            return  # nothing there could have it
        found = f" {_found(kind, name, candidates)} {advice.format(kind=kind)}" if candidates else ""
        logger.info(
            "%s: no frame has a label '%s', so no %s %s read.%s",
            ", ".join(files), name, kind, "is" if kind == quantity.singular else "are", found,
        )  # fmt: skip
    elif lacking.any():
        first, counts = pool[int(lacking.argmax())], (lacking.sum(), molecules.sum())
        logger.warning(
            "%s: %d of %d frames have no %s label '%s' (the first is %s); their other labels are used.",
            files[0] if len(files) == 1 else f"{len(files)} files", *counts, kind, name,
            f"frame {first.index}, counted from 0" if len(files) == 1 else first.where,
        )  # fmt: skip


def _no_label_at_all(labels: LabelsConfig, files: list[str], candidates: dict, advice: str) -> str:
    lines = [f"{', '.join(files)}: no frame has any of the labels looked for."]
    for kind in LABELS:
        name = getattr(labels, kind)
        if name is not None:
            found = _found(kind, name, candidates[kind])
            lines.append(f"  {kind}: no '{name}'. {found} {advice.format(kind=kind)}")
    return "\n".join(lines)


def _found(kind: str, name: str, candidates: set[str]) -> str:
    """The names that could be meant, and the nearest of them."""
    near = difflib.get_close_matches(name.lower(), [c.lower() for c in candidates], n=1, cutoff=0.5)
    nearest = next((c for c in sorted(candidates) if near and c.lower() == near[0]), None)
    found = f"Names with {QUANTITIES[kind].looks_like} there: {', '.join(sorted(candidates)) or 'none'}."
    return found + (f" Did you mean '{nearest}'?" if nearest else "")
