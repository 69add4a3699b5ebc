"""pydantic's errors as lines a user can act on: where, what was expected, what was found, what to do."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from equipot.config.describe import Node, choices, describe, node_at
from equipot.config.schema import further_keys, is_known, with_totals
from equipot.config.strict_yaml import Place
from equipot.config.suggest import did_you_mean, nearest, suggest_key
from equipot.config.training import LossConfig

_MODEL_TYPE = ("model", "type")


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a configuration: its place, such as ("training", "epochs"), and the text."""

    place: Place
    text: str


def find_problems(schema: type[BaseModel], raw: Mapping[str, Any]) -> list[Problem]:
    """Everything wrong with a configuration given as nested dicts and lists; empty if it is valid."""
    try:
        schema.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    else:
        return []
    root = schema.model_json_schema()
    by_place: dict[Place, list[Mapping[str, Any]]] = {}
    outputs = _value_at(raw, ("model", "outputs"))
    outputs = outputs if isinstance(outputs, Mapping) else {}
    outputs = {name: output for name, output in outputs.items() if isinstance(name, str)}
    for title, node in root["$defs"].items():
        if "properties" in node and isinstance(node.get("additionalProperties"), Mapping):
            further = outputs if title == LossConfig.__name__ else with_totals(outputs)
            node["properties"] |= dict.fromkeys(further, node["additionalProperties"])
    for place, name in further_keys(raw):
        if not is_known(place, name, outputs):
            by_place[place] = [{"type": "extra_forbidden"}]
    for item in errors:
        by_place.setdefault(_place(item, raw), []).append(item)
    problems = [
        Problem(place, text)
        for place, group in by_place.items()
        if not _has_deeper(place, by_place)
        for text in _explain(root, raw, place, group)
    ]
    written = _value_at(raw, _MODEL_TYPE) if _MODEL_TYPE in by_place else None
    types = choices(root, node_at(root, _MODEL_TYPE, None))
    meant = nearest(written, types, cutoff=0.4) if isinstance(written, str) else None
    if meant is not None:
        # pydantic stops at a wrong type: look into the rest of the section as what was probably meant.
        as_meant = {**raw, "model": {**raw["model"], "type": meant}}
        problems += [problem for problem in find_problems(schema, as_meant) if problem not in problems]
    return problems


def place_text(place: Place) -> str:
    """A place as users write it: ``model.channels[1]``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return text.removeprefix(".")


def _has_deeper(place: Place, places: Iterable[Place]) -> bool:
    # A wrong item also makes the list around it wrong, and every other alternative of a union.
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _place(error: Mapping[str, Any], raw: Any) -> Place:
    """The keys and list indices of an error location, without the names of union members mixed into it."""
    location = error["loc"]
    if error["type"].startswith("union_tag"):
        return _MODEL_TYPE
    if location[0:1] == ("model",):
        location = location[:1] + location[2:]  # location[1] is the model type
    place: list[str | int] = []
    for depth, part in enumerate(location, start=1):
        in_list = isinstance(raw, list | tuple) and isinstance(part, int)
        if in_list or (isinstance(raw, Mapping) and part in raw):
            raw = raw[part]
        elif error["type"] != "missing" or depth < len(location):
            continue
        place.append(part)
    return tuple(place)


def _explain(
    root: Node, raw: Mapping[str, Any], place: Place, errors: list[Mapping[str, Any]]
) -> Iterator[str]:
    model = raw.get("model")
    model_type = model.get("type") if isinstance(model, Mapping) else None
    kinds = {error["type"] for error in errors}
    if kinds & {"extra_forbidden", "invalid_key"}:
        of_outputs = place in [further for further, _ in further_keys(raw)]
        yield f"unknown key. {suggest_key(root, place[:-1], str(place[-1]), model_type, of_outputs)}"
        return
    if "value_error" in kinds:  # of the alternative that was meant: it has the right form
        yield from (str(error["ctx"]["error"]) for error in errors if error["type"] == "value_error")
        return
    node = node_at(root, place, model_type)
    if kinds & {"missing", "union_tag_not_found"}:
        yield f"missing; expected {describe(root, node)}."
        return
    words, value = choices(root, node), _value_at(raw, place)
    hint = did_you_mean(value, words, cutoff=0.4) if isinstance(value, str) else ""
    kind = " (text)" if isinstance(value, str) and not words else ""
    yield f"expected {describe(root, node)}; found {_shown(value)}{kind}.{hint}"


def _value_at(raw: Any, place: Place) -> Any:
    for part in place:
        if isinstance(raw, Mapping):
            raw = raw.get(part)
        elif isinstance(raw, list | tuple) and isinstance(part, int):
            raw = raw[part]
        else:
            return None
    return raw


def _shown(value: Any) -> str:
    """A value as it looks in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{key}: {_shown(item)}' for key, item in value.items())}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(_shown(item) for item in value)}]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
