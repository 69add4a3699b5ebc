"""Sections of a configuration that are `auto`: which of their keys are open, and values for these."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from equipot.config import Config
from equipot.config.section import Section
from equipot.errors import ConfigError


class Choice(NamedTuple):
    """Values for keys of the configuration, and the reason."""

    values: dict[str, Any]
    reason: str

    def __str__(self) -> str:
        return f"Auto: {_in_words(self.values)}: {self.reason}"


def settle(config: Config, choices: Iterable[Choice]) -> tuple[Config, list[str]]:
    """``config`` with ``choices`` where it is open, and those in words."""
    lines = []
    for values, reason in choices:
        values = {key: value for key, value in values.items() if is_key_open(config, key)}
        if values:
            config = with_values(config, values)
            lines.append(str(Choice(values, reason)))
    return config, lines


def is_key_open(config: Config, key: str) -> bool:
    """Whether the section of ``key`` is `auto` and does not give a value for it."""
    name, *place = key.split(".")
    section = getattr(config, name)
    is_open = section.auto
    for part in place:
        if part not in section.model_fields_set:
            return is_open
        section = getattr(section, part)
    return False


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """``config`` with ``values`` by their keys."""
    raw = {name: getattr(config, name).model_dump(exclude_unset=True) for name in ("model", "training")}
    for key, value in values.items():
        *place, last = key.split(".")
        section = raw
        for part in place:
            section = section.setdefault(part, {})
        section[last] = value
    chosen = f"`auto` chose, {_in_words(values)},"
    return config.model_copy(
        update={name: section_of(type(getattr(config, name)), raw[name], chosen) for name in raw}
    )


def section_of(kind: type[Section], values: Mapping[str, Any], chosen: str) -> Section:
    """A section of the configuration. Raises ConfigError if given and ``chosen`` values do not agree."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = " ".join(part for part in (place, first["msg"].removeprefix("Value error, ")) if part)
        raise ConfigError(f"What {chosen} does not go with what is given: {reason}") from None


def _in_words(values: Mapping[str, Any]) -> str:
    """As in YAML, on one line."""
    texts = {
        key: json.dumps(value).replace('"', "") if isinstance(value, dict) else str(value).lower()
        for key, value in values.items()
    }
    return ", ".join(f"{key} {text}" for key, text in texts.items())


def merged(before: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``before`` with all that is ``given``, in inner sections, too."""
    return before | {
        key: merged(before[key], value)
        if isinstance(value, Mapping) and isinstance(before.get(key), Mapping) and key in ("loss", "schedule")
        else value
        for key, value in given.items()
    }
