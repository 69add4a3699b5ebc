"""What a relaxation is told, and what of it makes no sense."""

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from equipot.errors import ConfigError


def _option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class RelaxSettings:
    """How to relax, and the options of ``equipot relax``. Raises ConfigError for what makes no sense."""

    cell: bool = _option(False, "Relax the cells too, not the positions alone.", option="--cell")
    pressure: float = _option(0.0, "GPa, with --cell.")
    mask: tuple[int, int, int] | None = _option(
        None,
        "With --cell: 1 for each of x, y, z in which the cell may stretch, or shear with another such one, "
        "else 0; for a slab 1 1 0. By default all three.",
    )
    hydrostatic: bool = _option(False, "With --cell: it keeps its shape.", option="--hydrostatic")
    constant_volume: bool = _option(False, "With --cell: it keeps its volume.", option="--constant-volume")
    optimizer: str = _option("lbfgs", "lbfgs or fire.")
    force: float = _option(0.01, "eV/Å: converged if no atom's is larger,", option="--fmax")
    stress: float = _option(0.1, "GPa: with --cell, nor an element of the stress.", option="--smax")
    steps: int = _option(500, "Of each structure at most.")

    def __post_init__(self):
        if self.optimizer not in ("lbfgs", "fire"):
            raise ConfigError(f"--optimizer must be lbfgs or fire, found '{self.optimizer}'.")
        for option, value, unit in (("--fmax", self.force, "eV/Å"), ("--smax", self.stress, "GPa")):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{option} must be a number greater than 0 ({unit}), found {value}.")
        if not isinstance(self.steps, Integral) or self.steps < 0:
            raise ConfigError(f"--steps must be a whole number of at least 0, found {self.steps}.")
        if not math.isfinite(self.pressure):
            raise ConfigError(f"--pressure must be a finite number (GPa), found {self.pressure}.")
        given = {
            "--pressure": self.pressure != 0,
            "--mask": self.mask is not None,
            "--hydrostatic": self.hydrostatic,
            "--constant-volume": self.constant_volume,
        }
        words = [option for option, there in given.items() if there]
        if words and not self.cell:
            raise ConfigError(f"{words[0]} is about the cell, which stays as it is: give --cell too.")
        if self.mask is not None and (
            len(self.mask) != 3 or not set(self.mask) <= {0, 1} or not any(self.mask)
        ):
            raise ConfigError(f"--mask must be three numbers 0 or 1, not all 0, found {self.mask}.")
        if self.hydrostatic and (self.constant_volume or self.mask is not None):
            other = "--constant-volume" if self.constant_volume else "--mask"
            raise ConfigError(f"--hydrostatic and {other} contradict each other: give one of them.")
        if self.constant_volume and self.pressure:
            raise ConfigError("--pressure does nothing at --constant-volume: give one of them.")
