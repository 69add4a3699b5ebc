"""Reading structures of any format (``equipot.data.formats``), with labels found by name."""

import difflib
import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ase.data import atomic_numbers

from equipot.config.data import FORMATS, DataConfig, FixedAtoms, LabelsConfig, Parsing, Source, UnitsConfig
from equipot.config.load import load_config
from equipot.config.suggest import did_you_mean
from equipot.data.formats import find_format, open_contents
from equipot.data.found_labels import check_labels, report_weights
from equipot.data.frames import NO_LABELS, Frame, frame_of, label_candidates
from equipot.data.pool import MemoryPart, Part, Pool, StorePart
from equipot.data.progress import track
from equipot.data.stated_units import check_units
from equipot.data.store.file import Store
from equipot.data.text import YAML_ADVICE
from equipot.errors import DataError
from equipot.quantities import FIELD, KEYS, QUANTITIES, UNIT_POWERS, USUAL, declare
from equipot.units import unit_factor

_DEFAULT = Source(())
_DEFAULT_LABELS, _DEFAULT_UNITS, _DEFAULT_PARSING = _DEFAULT.labels, _DEFAULT.units, _DEFAULT.parsing

Paths = str | Path | Sequence[str | Path]


def named_labels(names: Mapping[str, str], others: LabelsConfig = _DEFAULT_LABELS) -> LabelsConfig:
    """Names given as words, ``none`` for a label that is not to be read; those not given as in ``others``.

    A name for the stress alone says that the files have no virial.
    """
    given = {kind: None if name == "none" else name for kind, name in names.items()}
    if given.get(FIELD.name):
        declare(FIELD)
    for quantity in QUANTITIES.values():
        if quantity.name in given:
            given = {**{key.name: None for key in quantity.others}, **given}
    return LabelsConfig(**{**others.model_dump(), **given})


def named_units(units: Mapping[str, str], others: UnitsConfig = _DEFAULT_UNITS) -> UnitsConfig:
    """Units given as words; those not given as in ``others``.

    Raises:
        ConfigError: there is no such unit; the message names those there are.
    """
    for of, unit in units.items():
        unit_factor(unit, UNIT_POWERS[of], of)
    return UnitsConfig(**{**others.model_dump(), **units})


def named_reading(
    keys: Mapping[str, str],
    units: Mapping[str, str],
    missing: str | None,
    format_name: str | None = None,
    species_map: str | None = None,
    keep_unconverged: bool = False,
    fixed_atoms: FixedAtoms | None = None,
    others: Any = _DEFAULT,
    config: Path | None = None,
) -> dict[str, Any]:
    """Arguments of what reads files: ``labels``, ``units``, ``missing``, ``format_name``, ``parsing``.

    What is not given is as in ``others``, which has all of these but the format, or in the YAML ``config``,
    whose outputs become quantities.

    Raises:
        DataError: there is no such format or meaning of NaN, or as ``named_parsing``.
        ConfigError: there is no such unit; or as `load_config`.
    """
    if config is not None:
        others = load_config(config).data
    if format_name is not None and format_name not in FORMATS:
        hint = did_you_mean(format_name, FORMATS)
        raise DataError(f"There is no format '{format_name}'; known: {', '.join(FORMATS)}.{hint}")
    missing = missing or others.missing
    if missing not in ("error", "nan"):
        raise DataError(f"--missing is '{missing}'; expected error or nan.")
    labels, measured = named_labels(keys, others.labels), named_units(units, others.units)
    parsing = named_parsing(species_map, keep_unconverged, fixed_atoms, others.parsing)
    own = {"missing": missing, "format_name": format_name, "parsing": parsing}
    return {"labels": labels, "units": measured, **own}


def named_parsing(
    species: str | None = None,
    keep_unconverged: bool = False,
    fixed_atoms: FixedAtoms | None = None,
    others: Parsing = _DEFAULT_PARSING,
) -> Parsing:
    """From words: ``HW=H,OW=O``; what is not given is as in ``others``.

    Raises:
        DataError: not pairs of a label and a chemical symbol; neither ``use`` nor ``leave_out``.
    """
    if fixed_atoms not in (None, *get_args(FixedAtoms)):
        raise DataError(f"--fixed-atoms is '{fixed_atoms}'; expected {' or '.join(get_args(FixedAtoms))}.")
    pairs = [pair.split("=") for pair in species.split(",")] if species else []
    for pair in pairs:
        if len(pair) != 2 or not pair[0] or pair[1] not in atomic_numbers:
            raise DataError(
                f"--species-map must be as HW=H,OW=O: labels and chemical symbols; found '{'='.join(pair)}'."
            )
    return Parsing(
        dict(pairs) or others.species,
        keep_unconverged or others.keep_unconverged,
        fixed_atoms or others.fixed_atoms,
    )


def read_frames(
    paths: Paths,
    labels: LabelsConfig = _DEFAULT_LABELS,
    units: UnitsConfig = _DEFAULT_UNITS,
    *,
    required: Iterable[str] = USUAL,
    need_any: bool = False,
    advice: str = YAML_ADVICE,
    missing: str = "error",
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
) -> list[Frame]:
    """Read, check and convert every frame of one or more files.

    A label may be missing in some frames (they get None, and a warning says how many). Missing in all of
    them, it is an error if it is ``required`` or if its name is not equipot's default; otherwise it is not
    read, and one line says so. Isolated atoms are not counted as lacking a label.

    Args:
        paths: a file, a pattern such as ``data/*.xyz``, or a list of these; folders where a format is one.
        labels: the names of the quantities in the files (``data.labels``); a name of None is not read.
        units: those of the files (``data.units``).
        required: the labels that at least one frame must have.
        need_any: at least one frame must have at least one label.
        advice: what messages tell the user to do about a label ``{kind}`` that is not found.
        missing: what NaN means (``data.missing``).
        format_name: one of the formats; None: by name and content.
        parsing: as ``data.species_map``, ``data.keep_unconverged`` and ``data.fixed_atoms``.

    Raises:
        DataError: a missing or unreadable file, a file without frames, an unusable frame, a missing label;
            a file that names other units than ``units``.
    """
    files = [paths] if isinstance(paths, str | Path) else paths
    files = tuple(Path(file) for file in files)
    source = Source(files, labels, units, format=format_name, missing=missing, parsing=parsing)
    pool, candidates = read_source(source)
    check_labels(source, pool, candidates, required, need_any, advice)
    return list(pool)


def read_frame(data: DataConfig, file: str, index: int) -> Frame:
    """One frame of a file that ``data`` names, unlabelled, in the units of its entry.

    Raises:
        DataError: ``data`` does not name the file, or it has no such frame.
    """
    source = named_files(data).get(file)
    if source is None:
        raise DataError(f"The section `data` of the configuration does not name {file}.")
    for number, atoms in open_contents(Path(file), source.format, source.parsing).numbered:
        if number == index:
            return frame_of(atoms, Source((Path(file),), NO_LABELS, source.units), file, index)
    raise DataError(f"{file} has no frame {index} (the first is 0).")


def named_files(data: DataConfig) -> dict[str, Source]:
    """Every file that ``data`` names, and its entry. Raises DataError where one does not exist."""
    paths = ((source, expand_paths(source.path, source.format)) for source in data.all_sources)
    return {str(path): source for source, found in paths for path in found}


def read_source(source: Source) -> tuple[Pool, dict[str, set[str]]]:
    """All frames, and the names of what could be each quantity in them; stores stay on disk.

    Raises:
        DataError: a missing or unreadable file, an unusable frame, a file that names other units.
    """
    parts: list[Part] = []
    candidates: dict[str, set[str]] = {key: set() for key in KEYS}
    for path in expand_paths(source.path, source.format):
        contents = open_contents(path, source.format, source.parsing)
        check_units(path, contents.units, source.labels, source.units, path.name)
        if find_format(path, source.format).name == "store":
            parts.append(StorePart(Store(path), source))
            continue
        frames = []
        for index, atoms in track(contents.numbered, f"reading {path.name}", contents.total):
            for key, names in label_candidates(atoms).items():
                candidates[key] |= names
            frames.append(frame_of(atoms, source, str(path), index))
        parts.append(MemoryPart(frames))
    pool = Pool(parts)
    report_weights(source, pool)
    return pool, candidates


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


def require_known_labels(files: Iterable[Path], format_name: str | None = None) -> None:
    """Raise DataError if a store has labels of outputs that this process does not know, and would lose."""
    for path in files:
        if find_format(path, format_name).name == "store" and (names := Store(path).unread):
            raise DataError(
                f"{path} has labels of outputs, {', '.join(names)}: name the YAML of their training by "
                "--config."
            )


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
    file, at, frames = str(path).rpartition("@")
    if at and Path(file).exists():
        return (
            f"There is no file {path}. Files are read whole here: to use a part of {file} ('{frames}'), "
            "write it to a file of its own, as 'equipot data split' and ASE do."
        )
    parent = path.parent
    if not parent.is_dir():
        return f"There is no file {path}: the folder {parent} does not exist."
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"There is no file {path}." + (f" Did you mean {parent / near[0]}?" if near else "")
