"""What a relaxation is told, and what of it makes no sense."""

import math
from dataclasses import dataclass

from equipot.errors import ConfigError
from equipot.integrations.settings import Settings, require, require_mask, setting


@dataclass(frozen=True)
class RelaxSettings(Settings):
    """How to relax, and the options of ``equipot relax``. Raises ConfigError for what makes no sense."""

    cell: bool = setting(False, "Relax the cells too, not the positions alone.", option="--cell")
    pressure: float = setting(0.0, "GPa, with --cell.")
    mask: tuple[int, int, int] | None = setting(
        None,
        "With --cell: 1 for each of x, y, z in which the cell may stretch, or shear with another such one, "
        "else 0; for a slab 1 1 0. By default all three.",
    )
    hydrostatic: bool = setting(False, "With --cell: it keeps its shape.", option="--hydrostatic")
    constant_volume: bool = setting(False, "With --cell: it keeps its volume.", option="--constant-volume")
    optimizer: str = setting("lbfgs", "lbfgs or fire.", choices=("lbfgs", "fire"))
    force: float = setting(0.01, "eV/Å: converged if no atom's is larger,", option="--fmax", above_0="eV/Å")
    stress: float = setting(
        0.1, "GPa: with --cell, nor an element of the stress.", option="--smax", above_0="GPa"
    )
    steps: int = setting(500, "Of each structure at most.", least=0)

    def __post_init__(self):
        super().__post_init__()
        require(math.isfinite(self.pressure), "--pressure", "a finite number (GPa)", self.pressure)
        given = {
            "--pressure": self.pressure != 0,
            "--mask": self.mask is not None,
            "--hydrostatic": self.hydrostatic,
            "--constant-volume": self.constant_volume,
        }
        words = [option for option, there in given.items() if there]
        if words and not self.cell:
            raise ConfigError(f"{words[0]} is about the cell, which stays as it is: give --cell too.")
        if self.mask is not None:
            require_mask(self.mask)
        if self.hydrostatic and (self.constant_volume or self.mask is not None):
            other = "--constant-volume" if self.constant_volume else "--mask"
            raise ConfigError(f"--hydrostatic and {other} contradict each other: give one of them.")
        if self.constant_volume and self.pressure:
            raise ConfigError("--pressure does nothing at --constant-volume: give one of them.")
