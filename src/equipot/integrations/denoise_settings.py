"""What `equipot denoise` is told, and what of it makes no sense."""

import math
from dataclasses import dataclass

from equipot.errors import ConfigError
from equipot.integrations.settings import Settings, require, setting


@dataclass(frozen=True)
class DenoiseSettings(Settings):
    """How to go from noise to a structure. Raises ConfigError for what makes no sense."""

    sigma: float = setting(0.0, "Å, standard deviation of noise put on the positions first.")
    copies: int = setting(1, "How many times to do it, each with noise of its own.", least=1)
    steps: int = setting(200, "Steps at most.", least=1)
    step: float = setting(0.3, "Share of the displacement that a step takes.")
    noise: float = setting(
        0.5, "Share of the noise that a step takes away which is drawn anew: a way out where it is stuck."
    )
    tolerance: float | None = setting(
        None,
        "Å, RMS displacement at which it ends; by default a tenth of the smallest sigma of the training.",
    )
    seed: int = setting(0, "Of the noise.", least=0)

    def __post_init__(self):
        super().__post_init__()
        rules = {
            "sigma": (self.sigma >= 0 and math.isfinite(self.sigma), "a length of at least 0 Å"),
            "step": (0 < self.step <= 1, "above 0 and at most 1"),
            "noise": (0 <= self.noise < 1, "at least 0 and below 1"),
            "tolerance": (self.tolerance is None or self.tolerance > 0, "a length above 0 Å"),
        }
        for name, (fits, expected) in rules.items():
            require(fits, f"--{name}", expected, getattr(self, name))
        if self.copies > 1 and self.sigma == self.noise == 0:
            raise ConfigError(f"--copies {self.copies} would all be the same: give --sigma or --noise, too.")
