"""The frames that a configuration names, read into memory or, through a cache, from stores."""

import logging
from collections.abc import Sequence
from pathlib import Path

from equipot.config.data import Source
from equipot.data.convert import cached_store
from equipot.data.digests import RememberedDigests
from equipot.data.formats import find_format
from equipot.data.found_labels import check_labels, report_weights
from equipot.data.pool import Pool, StorePart, joined
from equipot.data.readers import check_listed_once, expand_paths, read_source
from equipot.data.store.file import Store

logger = logging.getLogger("equipot")


def read_sources(
    sources: Sequence[Source], cutoff: float | None = None, cache: RememberedDigests | None = None
) -> Pool:
    """The frames of sources with names, units and weights of their own; each as ``readers.read_frames``.

    With a ``cache`` they come from stores with neighbor lists for ``cutoff`` (Å), made if they are not there,
    under the names of the files themselves.

    Raises:
        DataError: as ``read_frames``, for each source; a file is in two sources.
    """
    check_listed_once([path for source in sources for path in expand_paths(source.path)])
    pools = []
    for source in sources:
        if cache is None or _are_stores(source, cutoff):
            pool, candidates = read_source(source)
        else:
            store = cached_store(source, cutoff, cache)
            pool = Pool([StorePart(store, source, store.header["files"])])
            report_weights(source, pool)
            candidates = {kind: set(names) for kind, names in store.header["names"].items()}
        check_labels(source, pool, candidates)
        pools.append(pool)
    return joined(pools)


def _are_stores(source: Source, cutoff: float | None) -> bool:
    """Whether a source already is what a cache would hold."""

    def fits(path: Path) -> bool:
        return find_format(path, source.format).name == "store" and Store(path).cutoff == cutoff

    return all(fits(path) for path in expand_paths(source.path, source.format))
