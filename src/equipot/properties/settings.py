"""What the commands are told. Imports nothing heavy, as the command line makes its options of it."""

import math
from dataclasses import dataclass
from pathlib import Path

from equipot.errors import ConfigError
from equipot.integrations.md_settings import setting


@dataclass(frozen=True)
class Common:
    """What every property is told, and its options. Raises ConfigError for what makes no sense."""

    relax: bool = setting(
        False, "Relax first: positions and, of a crystal, the cell; its symmetry is kept.", option="--relax"
    )
    keep_cell: bool = setting(False, "Relax positions only.", option="--keep-cell")
    max_force: float = setting(0.01, "eV/Å; a structure with larger forces is no minimum and refused.")
    max_stress: float = setting(0.5, "GPa; the same for the stress of a crystal; inf for one under pressure.")
    symprec: float = setting(1e-3, "Å by which atoms may be off the places that symmetry gives them.")
    species_map: str | None = setting(
        None, "Elements of labels in the file, as data.species_map.", metavar="LABEL=SYMBOL,..."
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda or cuda:N.")
    output: Path | None = setting(  # noqa: RUF009
        None, "Folder for numbers, pictures and report; by default the command's name.", metavar="DIR"
    )
    overwrite: bool = setting(False, "Replace an earlier result in DIR.", option="--overwrite")

    def __post_init__(self):
        for name, unit in (("max_force", "eV/Å"), ("max_stress", "GPa"), ("symprec", "Å")):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(f"{_words(name)} must be a number greater than 0 ({unit}), found {value}.")
        if not math.isfinite(self.symprec):
            raise ConfigError(f"--symprec must be a length (Å), found {self.symprec}.")
        if self.keep_cell and not self.relax:
            raise ConfigError("--keep-cell says how to relax: give --relax with it.")


def _words(name: str) -> str:
    return f"--{name.replace('_', '-')}"
