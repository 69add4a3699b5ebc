"""Files that are either complete or absent."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it to ``path`` if the block succeeds, remove it if not.

    A kill or a full disk therefore never leaves a half-written file under the final name. An OSError on the
    way names ``path``, which the user knows, and not the temporary one.
    """
    path = Path(path)
    with naming_errors(path):
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
    path.parent.mkdir(parents=True, exist_ok=True)
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
