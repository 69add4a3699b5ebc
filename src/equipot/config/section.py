"""What every section of the configuration shares, and the field types used by more than one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from ase.data import chemical_symbols
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, create_model

from equipot.config.suggest import did_you_mean
from equipot.errors import ConfigError

ELEMENTS = tuple(chemical_symbols[1:])  # chemical_symbols[0] is ASE's placeholder 'X'


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values are not coerced, instances cannot change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        defer_build=True,  # until one is made: imports take half as long
    )


class OpenSection(Section):
    """A section whose keys may also be names of the model's outputs; `Config` checks that they are."""

    model_config = ConfigDict(extra="allow")

    def value_of(self, name: str, default: Any = None) -> Any:
        """That of a key, or of an output; ``default`` where it has none."""
        if name in type(self).model_fields:
            return getattr(self, name)
        return (self.model_extra or {}).get(name, default)


def with_fields(base: type[Section], fields: dict[str, tuple[Any, Any]]) -> type[Section]:
    """``base`` and, after its own, ``fields``: name → (type, ``Field``)."""
    return create_model(base.__name__, __base__=base, **fields)


def valid_by(check: Callable[[str], Any]) -> AfterValidator:
    """Of words that ``check`` takes, which raises ConfigError for others."""

    def validate(word: str) -> str:
        try:
            check(word)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return word

    return AfterValidator(validate)


def paths_from_strings(value: Any) -> Any:
    """One file name or a list of them as path tuple; anything else unchanged, for pydantic to reject."""
    names = value if isinstance(value, list | tuple) else [value]
    if not names or not all(isinstance(name, str | Path) and str(name) for name in names):
        return value
    return tuple(Path(name).expanduser() for name in names)


def path_from_string(value: Any) -> Any:
    """A file name as a path; anything else unchanged, for pydantic to reject."""
    return Path(value).expanduser() if isinstance(value, str) and value else value


def check_symbol(symbol: str) -> str:
    """The symbol; raises ValueError if there is no such element."""
    if symbol not in ELEMENTS:
        raise ValueError(f"'{symbol}' is not a chemical symbol.{did_you_mean(symbol, ELEMENTS)}")
    return symbol


# What `auto` in place of a section stands for.
AUTO = {"model": {"type": "nequip", "auto": True}, "training": {"auto": True}}


def section_from_word(name: str, value: Any) -> Any:
    """The section that `auto` stands for; anything else unchanged."""
    return dict(AUTO[name]) if value == "auto" and name in AUTO else value


def short(name: str, section: Any) -> BeforeValidator:
    """Lets `auto` stand for the ``section`` of this name."""
    return BeforeValidator(partial(section_from_word, name), json_schema_input_type=section | Literal["auto"])


PathField = Annotated[Path, BeforeValidator(path_from_string, json_schema_input_type=Path)]

Paths = Annotated[
    tuple[Path, ...],
    BeforeValidator(
        paths_from_strings, json_schema_input_type=Path | Annotated[list[Path], Field(min_length=1)]
    ),
]
"""One file name or a list of them in the YAML; always a tuple of paths in the Config."""

Element = Annotated[str, AfterValidator(check_symbol), Field(json_schema_extra={"format": "element"})]

# YAML has lists where a frozen Config holds tuples, hence the one relaxed conversion.
Elements = Annotated[tuple[Element, ...], Strict(False), Field(min_length=1)]

PositiveInts = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False), Field(min_length=1)]
