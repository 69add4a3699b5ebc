"""equipot's own stores (``equipot.data.store``) as one of the formats."""

from pathlib import Path

from equipot.data.formats.base import Contents, Format
from equipot.data.store.file import Store, is_store


def _read(path: Path) -> Contents:
    store = Store(path)
    frames = (store.frame(number) for number in range(len(store)))
    return Contents(frames, len(store), {"energy": "eV", "length": "Ang"})


FORMAT = Format("store", "an equipot store", is_store, _read)
