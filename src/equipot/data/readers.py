"""Reading structure files: anything ASE reads, with labels found by name."""

import difflib
import glob
import gzip
import io
import logging
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ase
import ase.io
from ase.io.formats import UnknownFileTypeError, filetype

from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data.frames import Frame, frame_from_atoms, label_candidates
from equipot.data.progress import track
from equipot.data.xyz import count_xyz_frames
from equipot.errors import DataError

logger = logging.getLogger("equipot")

_KINDS = ("energy", "forces", "stress")
_SHAPES = {"energy": "single numbers", "forces": "one vector per atom", "stress": "6 or 9 numbers"}
_ADVICE = "Set data.labels.{kind} to the name the file uses, or to null to do without."
_DEFAULT_LABELS = LabelsConfig()
_DEFAULT_UNITS = UnitsConfig()

Paths = str | Path | Sequence[str | Path]


def read_frames(
    paths: Paths,
    labels: LabelsConfig = _DEFAULT_LABELS,
    units: UnitsConfig = _DEFAULT_UNITS,
    *,
    required: Iterable[str] = ("energy", "forces"),
    need_any: bool = False,
    advice: str = _ADVICE,
) -> list[Frame]:
    """Read, check and convert every frame of one or more files.

    A label may be missing in some frames (they get None, and a warning says how many). Missing in all of
    them, it is an error if it is ``required`` or if its name is not equipot's default; otherwise it is not
    read, and one line says so. Isolated atoms are not counted as lacking a label.

    Args:
        paths: a file, a pattern such as ``data/*.xyz``, or a list of these.
        labels: the names of energy, forces and stress in the files (``data.labels``); a name of None is not
            read.
        units: energy and length units of the files (``data.units``).
        required: the labels that at least one frame must have.
        need_any: at least one frame must have at least one label.
        advice: what messages tell the user to do about a label ``{kind}`` that is not found.

    Raises:
        DataError: a missing or unreadable file, a file without frames, an unusable frame, a missing label.
    """
    frames: list[Frame] = []
    candidates: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for path in expand_paths(paths):
        for index, atoms in _read_file(path):
            for kind, names in label_candidates(atoms).items():
                candidates[kind] |= names
            frames.append(frame_from_atoms(atoms, labels, units, file=str(path), index=index))
    if need_any and not any(getattr(frame, kind) is not None for frame in frames for kind in _KINDS):
        raise DataError(_no_label_at_all(labels, frames, candidates, advice))
    for kind in _KINDS:
        name = getattr(labels, kind)
        if name is not None:
            _check_label(kind, name, frames, candidates[kind], kind in set(required), advice)
    return frames


def expand_paths(paths: Paths) -> list[Path]:
    """Files in the order given, patterns replaced by their sorted matches.

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
        if not path.is_file():
            raise DataError(f"{path} is not a file. To read a folder's files, write {path}/*.xyz.")
    resolved = [path.resolve() for path in files]
    for path in files:
        if resolved.count(path.resolve()) > 1:
            raise DataError(f"{path} is listed more than once; its frames would count twice.")
    return files


def _missing_file(path: Path) -> str:
    if glob.has_magic(str(path)):
        return f"No file matches the pattern {path}."
    parent = path.parent
    if not parent.is_dir():
        return f"There is no file {path}: the folder {parent} does not exist."
    near = difflib.get_close_matches(path.name, [p.name for p in parent.iterdir()], n=1)
    return f"There is no file {path}." + (f" Did you mean {parent / near[0]}?" if near else "")


def _read_file(path: Path) -> Iterator[tuple[int, ase.Atoms]]:
    """Yield the structures of a file with their numbers from 0; ASE's errors become DataError."""
    number = 0
    try:
        source, total, options = _open(path)
        for atoms in track(ase.io.iread(source, ":", **options), f"reading {path.name}", total):
            yield number, atoms
            number += 1
    except DataError:
        raise
    except UnknownFileTypeError as error:
        raise DataError(
            f"{path}: ASE does not recognise the file format ({error}). Extended XYZ (.xyz) always works."
        ) from error
    except Exception as error:  # ASE's readers raise whatever their parsing runs into
        raise DataError(
            f"{path}, frame {number} (the first is 0): ASE cannot read it: {type(error).__name__}: {error}. "
            "The file may be truncated or not in the format its name says."
        ) from error
    if number == 0:
        raise DataError(f"{path} contains no frames (ASE reads it as format '{options['format']}').")


def _open(path: Path) -> tuple[str | io.StringIO, int | None, dict]:
    """What to hand to ase.io.iread: source, number of frames if known, options.

    Extended XYZ is read into memory first: ASE seeks back and forth in it, which is slow in a .gz, and it
    stops without a word at a blank line, which would lose the rest of the file.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty.")
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        format_name = filetype(str(path))
        if format_name not in ("extxyz", "xyz"):
            return str(path), None, {"format": format_name, "do_not_split_by_at_sign": True}
        with opener(path, "rt") as stream:
            text = stream.read()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {error}. It is truncated, damaged, or not what its name says."
        ) from error
    return io.StringIO(text), count_xyz_frames(path, text), {"format": format_name}


def _check_label(
    kind: str, name: str, frames: list[Frame], candidates: set[str], required: bool, advice: str
) -> None:
    files = list(dict.fromkeys(frame.file for frame in frames))
    molecules = [frame for frame in frames if not frame.is_isolated_atom] or frames
    lacking = [frame for frame in molecules if getattr(frame, kind) is None]
    if len(lacking) == len(molecules):
        if required or name != getattr(_DEFAULT_LABELS, kind):
            raise DataError(_label_not_found(kind, name, files, candidates, advice))
        if kind == "stress" and not any(frame.pbc.all() for frame in molecules):
            return  # nothing there could have a stress
        verb = "are" if kind == "forces" else "is"
        found = f" {_found(kind, name, candidates)} {advice.format(kind=kind)}" if candidates else ""
        logger.info(
            "%s: no frame has a label '%s', so no %s %s read.%s", ", ".join(files), name, kind, verb, found
        )
    elif lacking:
        first = lacking[0]
        logger.warning(
            "%s: %d of %d frames have no %s label '%s' (the first is %s); their other labels are used.",
            files[0] if len(files) == 1 else f"{len(files)} files", len(lacking), len(molecules), kind, name,
            f"frame {first.index}, counted from 0" if len(files) == 1 else first.where,
        )  # fmt: skip


def _label_not_found(kind: str, name: str, files: list[str], candidates: set[str], advice: str) -> str:
    found = _found(kind, name, candidates)
    missing = f"{', '.join(files)}: no frame has a label '{name}' for the {kind}."
    return f"{missing} {found} {advice.format(kind=kind)}"


def _no_label_at_all(labels: LabelsConfig, frames: list[Frame], candidates: dict, advice: str) -> str:
    files = ", ".join(dict.fromkeys(frame.file for frame in frames))
    lines = [f"{files}: no frame has any of the labels looked for."]
    for kind in _KINDS:
        name = getattr(labels, kind)
        if name is not None:
            found = _found(kind, name, candidates[kind])
            lines.append(f"  {kind}: no '{name}'. {found} {advice.format(kind=kind)}")
    return "\n".join(lines)


def _found(kind: str, name: str, candidates: set[str]) -> str:
    """The names that could be meant, and the nearest of them."""
    near = difflib.get_close_matches(name.lower(), [c.lower() for c in candidates], n=1, cutoff=0.4)
    nearest = next((c for c in sorted(candidates) if near and c.lower() == near[0]), None)
    found = f"Names with {_SHAPES[kind]} there: {', '.join(sorted(candidates)) or 'none'}."
    return found + (f" Did you mean '{nearest}'?" if nearest else "")
