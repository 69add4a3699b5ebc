"""What a simulation is told, and what of it makes no sense."""

import math
import re
from dataclasses import dataclass

from equipot.errors import ConfigError
from equipot.integrations.settings import Settings, require, require_mask, setting

_MAX_TEMPERATURE = 1e5  # K; hotter is a mistyped number, and atoms then meet within a few steps


@dataclass(frozen=True)
class MDSettings(Settings):
    """What to run, and the options of ``equipot md``. Raises ConfigError for what makes no sense."""

    ensemble: str = setting("nvt", "nve, nvt or npt.", choices=("nve", "nvt", "npt"))
    thermostat: str = setting(
        "langevin",
        "langevin, nose-hoover (chains) or csvr, for nvt; for npt the first two.",
        choices=("langevin", "nose-hoover", "csvr"),
    )
    temperature: float = setting(
        300.0, "K; for nve of the velocities that are drawn.", within=(0.0, _MAX_TEMPERATURE, "K")
    )
    steps: int = setting(1000, "Time steps.", least=1)
    timestep: float = setting(0.5, "fs.", above_0="fs")
    pressure: float = setting(0.0, "GPa, for npt.", within=(-10_000.0, 10_000.0, "GPa"))
    mask: tuple[int, int, int] | None = setting(
        None,
        "For npt: 1 for each of x, y, z in which the cell may stretch by itself, else 0. By default it keeps "
        "its shape.",
    )
    friction: float = setting(
        0.01, "1/fs; nose-hoover and csvr take its inverse as their time.", above_0="1/fs"
    )
    velocities: str | None = setting(
        None,
        "keep those of the structure, or draw them; by default kept if there are any.",
        choices=(None, "keep", "draw"),
    )
    seed: int = setting(0, "Of velocities and thermostat.", least=0)
    energy: str = setting(
        "total",
        "total, or isolated: relative to what the model gives for each atom alone.",
        choices=("total", "isolated"),
    )
    field: tuple[float, float, float] | None = setting(
        None, "V/Å, a uniform electric field along x, y, z, for models that know it (model.field)."
    )
    log_interval: int = setting(
        10, "Steps between frames of trajectory and log.", option="--interval", least=1
    )
    restart_interval: int = setting(
        1000, "Steps between restart files, from which --resume goes on.", least=1
    )
    stop_below: str | None = setting(
        None,
        "Stop where atoms come closer than this many times the shortest distance of their elements in the "
        "training set (0.9), or than a distance (0.8Å).",
        metavar="FACTOR|Å",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.field is not None:
            fits = len(self.field) == 3 and all(map(math.isfinite, self.field))
            require(fits, "--field", "three numbers (V/Å)", self.field)
        self._check_combinations()
        if self.stop_below is not None:
            self.stop_limits({})

    def _check_combinations(self) -> None:
        if self.ensemble == "npt" and self.thermostat == "csvr":
            raise ConfigError("csvr has no barostat: for npt, --thermostat must be langevin or nose-hoover.")
        if self.ensemble != "nve" and self.thermostat != "langevin" and self.temperature == 0:
            raise ConfigError(f"--thermostat {self.thermostat} needs a --temperature above 0 K.")
        if self.mask is None:
            return
        if self.ensemble != "npt":
            raise ConfigError(f"--mask is for npt; with --ensemble {self.ensemble} the cell stays as it is.")
        require_mask(self.mask)

    @property
    def conserves_momentum(self) -> bool:
        """Whether the integrator leaves the total momentum as it is, but for its length."""
        return self.ensemble == "nve" or self.thermostat != "langevin"

    def stop_limits(self, shortest: dict[str, float]) -> float | dict[str, float]:
        """Å below which to stop: one for all pairs of elements, or of each pair in ``shortest`` (Å)."""
        match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*(Å|A|Ang)?\s*", str(self.stop_below))
        try:
            value = float(match[1]) if match else math.nan
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(
                "--stop-below must be a factor of the shortest distances in the training set, such as 0.9, "
                f"or a distance, such as 0.8Å; found '{self.stop_below}'."
            )
        return value if match[2] else {pair: value * distance for pair, distance in shortest.items()}
