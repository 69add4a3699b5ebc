"""Reading structures of any format (``equipot.data.formats``), with labels found by name."""

import difflib
import glob
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from equipot.config.data import DataConfig, LabelsConfig, Source, UnitsConfig
from equipot.data.formats import find_format, open_contents
from equipot.data.frames import NO_LABELS, Frame, frame_of, label_candidates
from equipot.data.progress import track
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
        paths: a file, a pattern such as ``data/*.xyz``, or a list of these; folders where a format is one.
        labels: the names of energy, forces and stress in the files (``data.labels``); a name of None is not
            read.
        units: energy and length units of the files (``data.units``).
        required: the labels that at least one frame must have.
        need_any: at least one frame must have at least one label.
        advice: what messages tell the user to do about a label ``{kind}`` that is not found.

    Raises:
        DataError: a missing or unreadable file, a file without frames, an unusable frame, a missing label;
            a file that names other units than ``units``.
    """
    files = [paths] if isinstance(paths, str | Path) else paths
    source = Source(tuple(Path(file) for file in files), labels, units)
    frames, candidates = _read_source(source)
    if need_any and not any(getattr(frame, kind) is not None for frame in frames for kind in _KINDS):
        raise DataError(_no_label_at_all(labels, frames, candidates, advice))
    _check_labels(source, frames, candidates, required, advice)
    return frames


def read_sources(sources: Sequence[Source]) -> list[Frame]:
    """Read the frames of sources with names, units and weights of their own; each as ``read_frames``.

    Raises:
        DataError: as ``read_frames``, for each source; a file is in two sources.
    """
    _check_listed_once([path for source in sources for path in expand_paths(source.path)])
    every = []
    for source in sources:
        frames, candidates = _read_source(source)
        _check_labels(source, frames, candidates, ("energy", "forces"), _ADVICE)
        every += frames
    return every


def read_frame(data: DataConfig, file: str, index: int) -> Frame:
    """One frame of a file that ``data`` names, unlabelled, in the units of its entry.

    Raises:
        DataError: ``data`` does not name the file, or it has no such frame.
    """
    sources = [source for name in ("train", "validation", "test") for source in data.sources(name)]
    for source in sources:
        for path in expand_paths(source.path, source.format):
            if str(path) == file:
                structures = enumerate(open_contents(path, source.format).structures)
                for number, atoms in structures:
                    if number == index:
                        return frame_of(atoms, NO_LABELS, source.units, 1.0, file, index)
                raise DataError(f"{file} has no frame {index} (the first is 0).")
    raise DataError(f"The section `data` of the configuration does not name {file}.")


def _read_source(source: Source) -> tuple[list[Frame], dict[str, set[str]]]:
    """All frames, and the names of what could be energies, forces, stresses in them."""
    frames: list[Frame] = []
    candidates: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for path in expand_paths(source.path, source.format):
        contents = open_contents(path, source.format)
        _check_units(path, contents.units, source.units)
        structures = track(contents.structures, f"reading {path.name}", contents.total)
        for index, atoms in enumerate(structures):
            for kind, names in label_candidates(atoms).items():
                candidates[kind] |= names
            frames.append(frame_of(atoms, source.labels, source.units, source.weight, str(path), index))
    _report_weights(source, frames)
    return frames, candidates


def _check_units(path: Path, named: dict[str, str], units: UnitsConfig) -> None:
    for kind, unit in named.items():
        if getattr(units, kind) != unit:
            raise DataError(
                f"{path} names {unit} as its unit of {kind}, but data.units.{kind} is "
                f"{getattr(units, kind)}. Set it to {unit}, for this entry alone: {{path: {path.name}, "
                f"units: {{{kind}: {unit}}}}}."
            )


def _report_weights(source: Source, frames: Sequence[Frame]) -> None:
    weights = [frame.weight / source.weight for frame in frames]
    weighted = sum(weight != 1 for weight in weights)
    if weighted:
        logger.info(
            "%s: %d of %d frames have a weight '%s' of their own in the loss (%g to %g).",
            ", ".join(dict.fromkeys(frame.file for frame in frames)), weighted, len(frames),
            source.labels.weight, min(weights), max(weights),
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
        if path.is_dir() and find_format(path, format_name) is None:
            raise DataError(
                f"{path} is not a file, nor a folder of DeePMD-kit, VASP or LMDB. To read a folder's files, "
                f"write {path}/*.xyz; for DeePMD systems in it, {path}/*."
            )
    _check_listed_once(files)
    return files


def _check_listed_once(files: Sequence[Path]) -> None:
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


def _check_labels(
    source: Source, frames: list[Frame], candidates: dict[str, set[str]], required: Iterable[str], advice: str
) -> None:
    for kind in _KINDS:
        name = getattr(source.labels, kind)
        if name is not None:
            _check_label(kind, name, frames, candidates[kind], kind in set(required), advice)


def _check_label(
    kind: str, name: str, frames: list[Frame], candidates: set[str], required: bool, advice: str
) -> None:
    files = list(dict.fromkeys(frame.file for frame in frames))
    molecules = [frame for frame in frames if not frame.is_isolated_atom] or frames
    lacking = [frame for frame in molecules if getattr(frame, kind) is None]
    if kind != "energy" and all(frame.is_isolated_atom for frame in frames):
        return  # their energies are all that is wanted of them
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
