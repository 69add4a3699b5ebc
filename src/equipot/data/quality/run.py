"""From plain words, as a command line has them, to summaries and reports."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from equipot.config.data import FORMATS, LabelsConfig, Parsing, UnitsConfig
from equipot.config.suggest import did_you_mean
from equipot.data.quality.check import check_collected
from equipot.data.quality.collect import Collected, collect
from equipot.data.quality.findings import Findings
from equipot.data.quality.summary import Summary, summarize
from equipot.data.readers import named_labels
from equipot.errors import DataError
from equipot.units import energy_factor, length_factor

_DEFAULT_PARSING = Parsing()


def inspect_files(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    energy_unit: str = "eV",
    length_unit: str = "Ang",
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
) -> list[Summary]:
    """Numbers of each file; arguments and errors as ``check_files``."""
    files, _ = _collected(paths, keys, energy_unit, length_unit, format_name, parsing)
    return [summarize(file) for file in files]


def check_files(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    energy_unit: str = "eV",
    length_unit: str = "Ang",
    format_name: str | None = None,
    parsing: Parsing = _DEFAULT_PARSING,
) -> Findings:
    """Read files and run every check; what cannot be read is a finding, too.

    Args:
        paths: files, patterns, folders of a format.
        keys: names of quantities in the files; ``none``: not read.
        energy_unit, length_unit: as in ``data.units``.
        format_name: one of the formats; None: by name and content.
        parsing: as ``data.species_map`` and ``data.keep_unconverged``.

    Raises:
        DataError: a file does not exist or is listed twice, or there is no such format.
        ConfigError: there is no such unit.
    """
    return check_collected(*_collected(paths, keys, energy_unit, length_unit, format_name, parsing))


def _collected(
    paths: Sequence[str | Path],
    keys: Mapping[str, str],
    energy: str,
    length: str,
    format_name: str | None,
    parsing: Parsing,
) -> tuple[list[Collected], LabelsConfig]:
    if format_name is not None and format_name not in FORMATS:
        hint = did_you_mean(format_name, FORMATS)
        raise DataError(f"There is no format '{format_name}'; known: {', '.join(FORMATS)}.{hint}")
    labels = named_labels(keys)
    return collect(paths, labels, unit_names(energy, length), format_name, parsing), labels


def unit_names(energy: str, length: str) -> UnitsConfig:
    """Units given as words.

    Raises:
        ConfigError: there is no such unit; the message names those there are.
    """
    energy_factor(energy), length_factor(length)
    return UnitsConfig(energy=energy, length=length)
