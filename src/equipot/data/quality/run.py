"""From plain words, as a command line has them, to summaries and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from equipot.config.data import LabelsConfig, Source
from equipot.data.quality.check import check_collected
from equipot.data.quality.collect import Collected, collect
from equipot.data.quality.findings import Findings
from equipot.data.quality.summary import Summary, summarize
from equipot.data.readers import named_reading
from equipot.quantities import FIELD


def inspect_files(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    **reading: Any,
) -> list[Summary]:
    """Numbers of each file; arguments and errors as ``check_files``."""
    files, _ = _collected(paths, {FIELD.name: "none"} | dict(keys), units, **reading)
    return [summarize(file) for file in files]


def check_files(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    units: Mapping[str, str] | None = None,
    **reading: Any,
) -> Findings:
    """Read files and run every check; what cannot be read is a finding, too.

    Args:
        paths: files, patterns, folders of a format.
        keys: names of quantities in the files, as ``named_labels`` takes them.
        units: as in ``data.units``.
        reading: what else ``named_reading`` takes.

    Raises:
        DataError: a file does not exist or is listed twice, or ``named_reading`` refuses what it is told.
        ConfigError: there is no such unit.
    """
    return check_collected(*_collected(paths, keys, units, **reading))


def _collected(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    units: Mapping[str, str] | None,
    missing: str | None = None,
    **others: Any,
) -> tuple[list[Collected], LabelsConfig]:
    reading = named_reading(keys, units or {}, missing, **others)
    source = Source((), format=reading.pop("format_name"), **reading)
    return collect(paths, source), source.labels
