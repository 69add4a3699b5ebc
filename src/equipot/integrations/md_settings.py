"""What a simulation is told, and what of it makes no sense."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from equipot.errors import ConfigError

_MAX_TEMPERATURE = 1e5  # K; hotter is a mistyped number, and atoms then meet within a few steps


@dataclass(frozen=True)
class MDSettings:
    """What to run. Raises ConfigError for values that make no sense."""

    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    temperature: float = 300.0  # K; for nve of the initial velocities
    steps: int = 1000
    timestep: float = 0.5  # fs
    pressure: float = 0.0  # GPa, for npt
    friction: float = 0.01  # 1/fs, for nvt and npt
    seed: int = 0
    log_interval: int = 10  # steps between two lines of the log, and between two frames

    def __post_init__(self):
        if self.ensemble not in ("nve", "nvt", "npt"):
            raise ConfigError(f"--ensemble must be nve, nvt or npt, found '{self.ensemble}'.")
        for option, value, least in (
            ("--steps", self.steps, 1),
            ("--interval", self.log_interval, 1),
            ("--seed", self.seed, 0),
        ):
            if not isinstance(value, Integral) or value < least:
                raise ConfigError(f"{option} must be a whole number of at least {least}, found {value}.")
        for option, value, unit in (
            ("--timestep", self.timestep, "fs"),
            ("--friction", self.friction, "1/fs"),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{option} must be a number greater than 0 ({unit}), found {value}.")
        if not 0 <= self.temperature <= _MAX_TEMPERATURE:  # False for nan
            raise ConfigError(
                f"--temperature must be between 0 and {_MAX_TEMPERATURE:g} K, found {self.temperature}."
            )
        if not math.isfinite(self.pressure):
            raise ConfigError(f"--pressure must be a finite number (GPa), found {self.pressure}.")
