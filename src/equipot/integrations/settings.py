"""Settings that are options of commands, too: fields that say what they are and what they have to be."""

import math
from dataclasses import Field, dataclass, field, fields
from numbers import Integral
from typing import Any

from equipot.errors import ConfigError

# What fields may have beside typer's words: unit of a number above 0; lowest and highest number, and unit;
# lowest whole number; words to choose.
RULES = ("above_0", "within", "least", "choices")


def setting(default: Any, text: str, **more: Any) -> Any:
    """A field that is an option, too; ``more``: of `RULES`, and typer's, where ``option`` is its name."""
    return field(default=default, metadata={"help": text, **more})


def option_of(field: Field) -> str:
    """Name of a field on the command line."""
    return field.metadata.get("option", f"--{field.name.replace('_', '-')}")


def require(fits: bool, option: str, expected: str, found: Any) -> None:
    """Raises ConfigError where a value does not fit."""
    if not fits:
        raise ConfigError(f"{option} must be {expected}, found {found}.")


def require_mask(mask: tuple[int, ...]) -> None:
    """Raises ConfigError for what does not choose among x, y and z."""
    chooses = len(mask) == 3 and set(mask) <= {0, 1} and any(mask)
    require(chooses, "--mask", "three numbers 0 or 1, not all 0", mask)


@dataclass(frozen=True)
class Settings:
    """Raises ConfigError for values that break the rules of their fields."""

    def __post_init__(self):
        for one in fields(self):
            value, option, rules = getattr(self, one.name), option_of(one), one.metadata
            if words := [word for word in rules.get("choices", ()) if word]:
                listed = " or ".join(", ".join(words).rsplit(", ", 1))
                expected = listed if len(words) < 4 else f"one of {', '.join(words)}"
                require(value in rules["choices"], option, expected, f"'{value}'")
            if "least" in rules and value is not None:
                whole = isinstance(value, Integral) and value >= rules["least"]
                require(whole, option, f"a whole number of at least {rules['least']}", value)
            if "above_0" in rules and value is not None:
                possible = math.isfinite(value) and value > 0
                require(possible, option, f"a number greater than 0 ({rules['above_0']})", value)
            if "within" in rules and value is not None:
                low, high, unit = rules["within"]
                require(low <= value <= high, option, f"from {low:g} to {high:g} {unit}".rstrip(), value)
