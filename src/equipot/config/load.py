"""From a YAML file, overrides or a dict to a valid Config, or one ConfigError that lists every problem."""

import copy
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from equipot.config.problems import Problem, find_problems, place_text
from equipot.config.schema import Config
from equipot.config.section import section_from_word
from equipot.config.strict_yaml import Place, parse_yaml
from equipot.config.suggest import did_you_mean
from equipot.errors import ConfigError
from equipot.quantities import FIELD, declare

_PATH_KEYS = ("train", "validation", "test", "cache")


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """Read and check a YAML file.

    Args:
        path: the YAML file. Relative data files start at its folder; ``run.directory`` defaults to
            ``runs/`` and its name without the ending.
        overrides: strings such as ``training.epochs=10``, the value in YAML. Relative data files in them
            start at the working directory, as a shell completes them.

    Raises:
        ConfigError: missing or unreadable file, YAML syntax error (with its line), or a list of every
            unknown key, missing key and wrong value, each with its line, its place and what was expected.
    """
    path = Path(path)
    raw, lines = parse_yaml(_read(path, "configuration file"), str(path))
    if raw is None:
        raise ConfigError(f"{path}: the file is empty; expected at least the sections 'data' and 'model'.")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected sections ('data:', 'model:', ...), found {type(raw).__name__}.")
    origins = {place: f"line {line}" for place, line in lines.items()}
    _resolve_paths(raw, path.absolute().parent)
    for override in overrides:
        _apply_override(raw, override, origins)
    _resolve_paths(raw, Path.cwd())
    _default_directory(raw, path.stem)
    return _validate(raw, str(path), origins)


def config_from_dict(data: Mapping[str, Any]) -> Config:
    """Check a configuration given as nested dicts, such as ``Config.to_dict()``; paths stay as they are.

    Raises:
        ConfigError: a list of every unknown key, missing key and wrong value.
    """
    return _validate(copy.deepcopy(dict(data)), "configuration", {})


def _read(path: Path, what: str, kind: str = "YAML", pattern: str = "*.y*ml") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        names = [near.name for near in path.parent.glob(pattern)] if path.parent.is_dir() else []
        raise ConfigError(
            f"No {what} '{path}' in {path.absolute().parent}.{did_you_mean(path.name, names)}"
        ) from None
    except IsADirectoryError:
        raise ConfigError(f"'{path}' is a folder; expected a {kind} file.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); expected a {kind} file.") from None
    except OSError as error:
        raise ConfigError(f"Cannot read '{path}': {error.strerror}.") from None


def _validate(raw: dict[str, Any], source: str, origins: Mapping[Place, str]) -> Config:
    problems = find_problems(Config, raw)
    if not problems:
        config = Config.model_validate(raw)
        for name, output in config.outputs.items():
            declare(output.quantity(name))
        if config.model is not None and config.model.field:
            declare(FIELD)
        return config
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [_problem_line(problem, origins) for problem in problems]
    raise ConfigError("\n  ".join([f"{source}: {count}", *lines]))


def _problem_line(problem: Problem, origins: Mapping[Place, str]) -> str:
    place = problem.place
    while place and place not in origins:
        place = place[:-1]
    parts = [part for part in (origins.get(place), place_text(problem.place)) if part]
    return ": ".join([", ".join(parts), problem.text] if parts else [problem.text])


def _resolve_paths(raw: dict[str, Any], folder: Path) -> None:
    """Make the relative file names in section ``data`` absolute, in place; wrong types stay as they are.

    A file with the basis of an output is read: what is trained and deployed has it whole.
    """
    data, model = raw.get("data"), raw.get("model")
    for key in _PATH_KEYS if isinstance(data, dict) else ():
        if key in data:
            data[key] = _resolved(data[key], folder)
    outputs = model.get("outputs") if isinstance(model, dict) else None
    for name, output in outputs.items() if isinstance(outputs, dict) else ():
        if isinstance(output, dict) and isinstance(output.get("basis"), str):
            outputs[name] = {**output, "basis": _read_basis(Path(_absolute(output["basis"], folder)), name)}


def _read_basis(file: Path, name: str) -> Any:
    try:
        return json.loads(_read(file, f"basis file (model.outputs.{name}.basis)", "JSON", "*.json"))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"model.outputs.{name}.basis: '{file}' is no JSON ({error}). Expected shells by element, as in "
            '{"H": [{"l": 0, "exponents": [1.2, 0.3]}]}.'
        ) from None


def _resolved(entry: Any, folder: Path) -> Any:
    """An entry with its names made absolute, wherever they are in it; a copy, as YAML may share objects."""
    if isinstance(entry, str):
        return _absolute(entry, folder)
    if isinstance(entry, list):
        return [_resolved(item, folder) for item in entry]
    if isinstance(entry, dict) and "path" in entry:
        return {**entry, "path": _resolved(entry["path"], folder)}
    return entry


def _absolute(name: str, folder: Path) -> str:
    # An empty name stays empty, so that it is refused.
    return os.path.normpath(folder / Path(name).expanduser()) if name else name


def _default_directory(raw: dict[str, Any], stem: str) -> None:
    run = raw.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("directory", f"runs/{stem}")


def _apply_override(raw: dict[str, Any], override: str, origins: dict[Place, str]) -> None:
    """Set one value in place. Sections on the way are made; unknown keys are left for validation to name."""
    key, equals, text = override.partition("=")
    place = tuple(key.strip().split("."))
    if not equals or not all(place):
        raise ConfigError(f"Override '{override}': expected KEY=VALUE, such as training.epochs=10.")
    value, _ = parse_yaml(text, f"override '{override}'")
    section = raw
    for depth, name in enumerate(place[:-1], start=1):
        inner = section_from_word(name, section.get(name)) if depth == 1 else section.get(name)
        if inner is not None and not isinstance(inner, dict):
            parent = ".".join(place[:depth])
            raise ConfigError(f"Override '{override}': '{parent}' is a value, not a section.")
        # A copy, because a YAML alias can make two sections one object.
        section[name] = dict(inner or {})
        section = section[name]
    section[place[-1]] = value
    for known in [known for known in origins if known[: len(place)] == place]:
        del origins[known]
    for depth in range(1, len(place) + 1):
        origins.setdefault(place[:depth], f"override '{override}'")
