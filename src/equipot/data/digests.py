"""Digests of data files, which say whether a file is what it was."""

import hashlib
import json
from pathlib import Path

from equipot.data.store.file import header_and_digest, is_store
from equipot.files import atomic_write


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes; of a folder, over the names and bytes of the files in it.

    Of a store: of its header, which holds the checksums of all the rest.
    """
    path = Path(path)
    if is_store(path):
        return header_and_digest(path)[1]
    digest = hashlib.sha256()
    for file in sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]:
        if file != path:
            digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def identity(path: Path) -> list[list]:
    """Size and time of change of a file, or of the files in a folder: changes when one is written to."""
    files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class RememberedDigests:
    """``file_digest`` that reads a file again only if its size or time of change is another.

    What it has found is kept in ``digests.json`` in a folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._path = folder / "digests.json"
        try:
            self._known = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            self._known = {}

    def __call__(self, path: str | Path) -> str:
        path = Path(path)
        name, now = str(path.resolve()), identity(path.resolve())
        known = self._known.get(name)
        if known is None or known["identity"] != now:
            known = self._known[name] = {"identity": now, "digest": file_digest(path)}
            with atomic_write(self._path) as temporary:
                temporary.write_text(json.dumps(self._known))
        return known["digest"]
