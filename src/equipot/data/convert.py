"""From files of any format to stores: what `equipot data convert` does, and the cache of a training."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from equipot.config.data import LabelsConfig, Parsing, Source, UnitsConfig
from equipot.data.digests import RememberedDigests, file_digest
from equipot.data.formats import open_contents
from equipot.data.formats.reference_energies import references_of
from equipot.data.found_labels import check_labels, numbers_beside, report_weights
from equipot.data.pool import Pool, StorePart
from equipot.data.readers import expand_paths, require_known_labels
from equipot.data.store.build import build_store
from equipot.data.store.file import SUFFIX, OtherVersionError, Store, read_header
from equipot.data.text import KEY_ADVICE
from equipot.errors import DataError
from equipot.quantities import BASIC, QUANTITIES

logger = logging.getLogger("equipot")


_DEFAULT_PARSING = Parsing()


@dataclass(frozen=True)
class Conversion:
    """What became of it."""

    path: Path
    num_frames: int
    written: bool  # False: the store was there, made from the same files in the same way


def convert(
    paths: Sequence[str | Path],
    output: Path,
    labels: LabelsConfig,
    units: UnitsConfig,
    cutoff: float | None = None,
    workers: int | None = None,
    missing: str = "error",
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
    overwrite: bool = True,
) -> Conversion:
    """Write frames, and their neighbor lists for ``cutoff`` (Å), unless ``output`` holds just these already.

    With ``workers`` processes; None: one for each core. Goes on where an interrupted conversion stopped.
    ``overwrite`` replaces a store of something else.

    Raises:
        DataError: a file cannot be read, a frame cannot be used, a label is missing; ``output`` is one of the
            files, a file that is no store, a store of another version, or without ``overwrite`` one of
            something else.
    """
    if output.suffix != SUFFIX:
        raise DataError(f"The name of a store ends in {SUFFIX}; {output} does not.")
    files = expand_paths(paths, format_name)
    if output.resolve() in [file.resolve() for file in files]:
        raise DataError(f"{output} is one of the files to convert; give another name.")
    require_known_labels(files, format_name)
    source = Source(tuple(files), labels, units, format=format_name, missing=missing, parsing=parsing)
    key = _key(files, source, cutoff, file_digest)

    def is_complete() -> bool:
        return output.exists() and read_header(output)["key"] == key  # refuses what is no store

    if output.exists() and not overwrite and not is_complete():
        raise DataError(
            f"{output} is a store of other files, or of these read in another way. Name another with "
            "--output, or give --overwrite."
        )

    def accept(store: Store) -> None:
        pool = Pool([StorePart(store, source, store.header["files"])])
        report_weights(source, pool)
        names = {kind: set(found) for kind, found in store.header["names"].items()}
        check_labels(source, pool, names, required=(), need_any=True, advice=KEY_ADVICE)

    written = not is_complete() and build_store(
        output, files, source, key, cutoff, is_complete, accept, workers
    )
    first = next(open_contents(files[0], format_name, parsing).structures, None)
    if written and first is not None and (others := numbers_beside(first, labels)):
        logger.info(
            "Not in the store, as no label reads it: %s. Labels of a model's outputs are read with --config.",
            ", ".join(sorted(others)),
        )  # fmt: skip
    if not written:
        _refuse_damage(Store(output))
    return Conversion(output, read_header(output)["num_frames"], written)


def _refuse_damage(store: Store) -> None:
    damaged = next((number for number in range(len(store)) if store.damaged(number)), None)
    if damaged is not None:
        raise DataError(
            f"{store.path} is of the same files, but its frame {damaged} is damaged (wrong checksum). Remove "
            "it and convert again."
        )


def cached_store(source: Source, cutoff: float | None, digests: RememberedDigests) -> Store:
    """The frames of a source as a store in the folder of ``digests``, made if it is not there.

    A store that is damaged or of another version is made again.

    Raises:
        DataError: a file cannot be read, or a frame cannot be used.
    """
    files = expand_paths(source.path, source.format)
    key = _key(files, source, cutoff, digests)
    path = digests.folder / f"{files[0].stem}-{key[:16]}{SUFFIX}"

    def is_complete() -> bool:
        try:
            return path.exists() and read_header(path)["key"] == key
        except OtherVersionError:
            logger.info("%s is of another version of equipot and is made again.", path)
        except DataError:
            logger.warning("%s is damaged and is made again.", path)
        return False

    if not is_complete():
        logger.info("Making %s, which the next training opens at once.", path)
        build_store(path, files, source, key, cutoff, is_complete)
    return Store(path)


def _beside(file: Path) -> list[Path]:
    found = references_of(file)
    return [] if found is None else [found]


def _key(files: Sequence[Path], source: Source, cutoff: float | None, digest: Callable[[Path], str]) -> str:
    """Hash of everything the store depends on. Species do not belong to it: it holds elements, not types."""
    parts = {
        "files": [[str(file), *map(digest, (file, *_beside(file)))] for file in files],
        "format": source.format,
        "labels": source.labels.model_dump(),
        **(
            {"outputs": outputs}
            if (outputs := [q.described for q in QUANTITIES.values()][len(BASIC) :])
            else {}
        ),
        "units": source.units.model_dump(),
        "missing": source.missing,
        "cutoff": cutoff,
        "parsing": {key: value for key, value in asdict(source.parsing).items() if key != "fixed_atoms"},
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
