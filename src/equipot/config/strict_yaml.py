"""YAML as people expect it: YAML 1.2's plain values, no duplicate keys, every key with its line."""

import re
from typing import Any

import yaml

from equipot.errors import ConfigError

Place = tuple[str | int, ...]

# PyYAML follows YAML 1.1, which reads 1e-3 as a string, No (nobelium) as false, 010 as 8 and 1:30 as 90.
_PLAIN_VALUES = [
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?[0-9]+", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", r"<<", ["<"]),
]


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}  # noqa: RUF012 (the name and type are PyYAML's)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}  # noqa: RUF012


for _tag, _pattern, _first in _PLAIN_VALUES:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
# SafeLoader's own constructors read a leading 0 as octal and know no exponent without a dot.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(loader.construct_scalar(node)))


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_yaml(text: str, source: str) -> tuple[Any, dict[Place, int]]:
    """Parse one YAML document.

    Args:
        text: the document.
        source: what to call it in an error, usually the file name.

    Returns:
        the data as plain Python, and the line (from 1) of every key and list item, by its place.

    Raises:
        ConfigError: syntax error, duplicate key or unsupported tag, with its line.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines: dict[Place, int] = {}
        _record_lines(node, (), lines, source)
        return loader.construct_document(node), lines
    except RecursionError:
        raise ConfigError(
            f"{source}: an alias (*name) refers to itself, or sections are nested too deeply."
        ) from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error, text, source)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{source}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def dump_yaml(data: Any) -> str:
    """YAML text of plain Python data, keys in their order, short lists on one line."""
    return yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100
    )


def _record_lines(node: yaml.Node, place: Place, lines: dict[Place, int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*place, key.value if isinstance(key, yaml.ScalarNode) else str(key.value))
            line = key.start_mark.line + 1
            if here in lines and here[-1] != "<<":
                raise ConfigError(
                    f"{source}, line {line}: key '{'.'.join(map(str, here))}' is given twice (first in line "
                    f"{lines[here]}). Keep one."
                )
            lines[here] = line
            _record_lines(value, here, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*place, index)] = item.start_mark.line + 1
            _record_lines(item, (*place, index), lines, source)


def _syntax_message(error: yaml.MarkedYAMLError, text: str, source: str) -> str:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return f"{source}: not valid YAML: {error.problem}"
    all_lines = text.splitlines()
    line = all_lines[mark.line] if mark.line < len(all_lines) else ""
    where = f"line {mark.line + 1}, column {mark.column + 1}"
    hint = " Indent with spaces: YAML does not allow tabs." if "\t" in line else ""
    context = f" ({error.context})" if error.context else ""
    shown = f"\n  {line.rstrip()}" if line.strip() else ""
    return f"{source}, {where}: not valid YAML: {error.problem}{context}.{hint}{shown}"
