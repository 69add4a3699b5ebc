"""Files that are either complete or absent."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equipot.errors import ConfigError


@contextmanager
def atomic_write(path: str | Path, make_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    A kill or a full disk therefore never leaves a half-written file under the final name. An OSError on the
    way names ``path``, which the user knows, and not the temporary one. Without ``make_folder`` that a folder
    is missing is such an error: of a run that goes on, it was removed.
    """
    path = Path(path)
    with naming_errors(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _create_beside(path)
    try:
        with naming_errors(path, temporary):
            yield temporary
        with naming_errors(path):
            _publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Mapping) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def require_writable(path: Path, option: str = "--output") -> None:
    """Raise ConfigError if a file or folder cannot be made there; before the work, so that it is not lost."""
    candidates = (path, *path.absolute().parents) if path.is_dir() else path.absolute().parents
    place = next(at for at in candidates if at.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        what = "no folder that can be written to" if place.is_dir() else "a file"
        raise ConfigError(f"Cannot write to {path}: {place} is {what}. Name another with {option}.")


def refuse_to_replace(
    path: Path, overwrite: bool = False, option: str = "--output", inputs: Iterable[str | Path] = ()
) -> None:
    """Before the work: whether a file may be written under a name that the user gave.

    Raises:
        ConfigError: it is a folder, cannot be written, is one of the files that are read (``inputs``), or is
            there, without ``overwrite``.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path} is a folder; give the name of a file in it.")
    if path.exists() and any(Path(one).exists() and path.samefile(one) for one in inputs):
        raise ConfigError(f"{path} is a file that is read here: name another with {option}.")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists. Name another with {option}, or give --overwrite.")
    require_writable(path, option)


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError, with the file's name, if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from None


@contextmanager
def naming_errors(path: Path, *temporary: Path) -> Iterator[None]:
    """Let OSErrors of writing say "Cannot write ``path``: reason"; their type and errno stay.

    Given the ``temporary`` file that is written, errors about other files pass unchanged.
    """
    try:
        yield
    except OSError as error:
        foreign = temporary and error.filename not in (None, *map(str, temporary))
        if error.errno is None or foreign or str(error.strerror).startswith("Cannot write"):
            raise
        # errno selects the subclass, such as PermissionError.
        raise OSError(error.errno, f"Cannot write {path}: {error.strerror}") from error


def _create_beside(path: Path) -> Path:
    # The suffix is kept because writers (ASE, matplotlib) choose the format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    return Path(name)


def _publish(temporary: Path, path: Path) -> None:
    # mkstemp makes private files; give what any new file would get.
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o666 & ~umask)
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)
