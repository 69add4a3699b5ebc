"""equipot's own stores (``equipot.data.store``) as one of the formats."""

from pathlib import Path

from equipot.config.data import Parsing
from equipot.data.formats.base import Contents, Format
from equipot.data.store.file import SUFFIX, Store, is_store
from equipot.quantities import QUANTITIES


def _read(path: Path, parsing: Parsing) -> Contents:
    store = Store(path)
    frames = (store.frame(number) for number in range(len(store)))
    return Contents(frames, len(store), {"length": "Ang", **{q.name: q.unit for q in QUANTITIES.values()}})


def _matches(path: Path) -> bool:
    """By its content, or by its name: then a damaged one is called damaged."""
    return is_store(path) or (path.is_file() and path.suffix == SUFFIX)


FORMAT = Format("store", "an equipot store", _matches, _read)
