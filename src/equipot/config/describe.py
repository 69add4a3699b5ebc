"""The JSON Schema of the configuration in words, for error messages and for the reference page."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Node = Mapping[str, Any]


@dataclass(frozen=True)
class SectionSchema:
    """One section: its place, the model type it is for (None: any), and its schema node."""

    place: tuple[str, ...]
    model_type: str | None
    node: Node

    @property
    def properties(self) -> Mapping[str, Node]:
        """Schema node of each key."""
        return self.node["properties"]


def sections(root: Node) -> Iterator[SectionSchema]:
    """All sections of the schema, outermost first, each nested one after its parent."""
    yield from _sections_below(root, root, (), None)


def _sections_below(root: Node, node: Node, place: tuple[str, ...], model_type: str | None):
    yield SectionSchema(place, model_type, node)
    for key, child in node["properties"].items():
        for option in options(root, child):
            if "properties" in option:
                chosen = option["properties"].get("type", {}).get("const", model_type)
                yield from _sections_below(root, option, (*place, key), chosen)
            for entry in options(root, option.get("additionalProperties") or {}):
                if "properties" not in option and "properties" in entry:  # under names of the user's
                    yield from _sections_below(root, entry, (*place, key, "NAME"), model_type)


def options(root: Node, node: Node) -> list[Node]:
    """The alternatives a node allows, references resolved; the node itself if there is one only."""
    if "$ref" in node:
        return [root["$defs"][node["$ref"].rsplit("/", 1)[-1]]]
    alternatives = node.get("anyOf") or node.get("oneOf")
    if not alternatives:
        return [node]
    return [found for alternative in alternatives for found in options(root, alternative)]


def node_at(root: Node, place: tuple[str | int, ...], model_type: str | None) -> Node:
    """The schema node of a place; that of the given model type, or all alternatives if the type is none."""
    node = root
    for part in place:
        children = [child for option in options(root, node) if (child := _child(option, part)) is not None]
        of_type = [
            child
            for option in options(root, node)
            if option.get("properties", {}).get("type", {}).get("const", model_type) == model_type
            and (child := _child(option, part)) is not None
        ]
        found = of_type or children
        node = found[0] if len(found) == 1 else {"anyOf": found}
    return node


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(part, int):
        return node.get("items")
    return node.get("properties", {}).get(part, node.get("additionalProperties") or None)


def choices(root: Node, node: Node) -> list[str]:
    """The words a node allows, if it allows some."""
    found = []
    for option in options(root, node):
        found += option.get("enum", [option["const"]] if "const" in option else [])
    return [choice for choice in found if isinstance(choice, str)]


def describe(root: Node, node: Node) -> str:
    """What a value must be: 'whole number ≥ 1 or null', 'nequip or allegro', 'path or list of paths'."""
    for option in node.get("anyOf", [node]):
        if "discriminator" in option:
            types = [f"type: {name}" for name in option["discriminator"]["mapping"]]
            return join_or([f"section with {join_or(types)}", *choices(root, node)])
    words: list[str] = []
    for option in options(root, node):
        for text in _describe_one(root, option):
            if text not in words:
                words.append(text)
    return join_or(words)


def join_or(words: list[str]) -> str:
    """'a', 'a or b', 'a, b or c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _plural(words: str) -> str:
    """'paths', 'mappings with a path'."""
    noun, *rest = words.split(" with ", 1)
    return " with ".join([f"{noun}s", *rest])


def _describe_one(root: Node, node: Node, plural: bool = False) -> list[str]:
    if "const" in node:
        return [str(node["const"])]
    if "enum" in node:
        return [str(value) for value in node["enum"]]
    if "words" in node:
        return [_plural(node["words"]) if plural else node["words"]]
    if "properties" in node:
        return [f"section with the keys {', '.join(node['properties'])}"]
    kind = node.get("type")
    if kind == "array":
        inner = [
            word for option in options(root, node["items"]) for word in _describe_one(root, option, True)
        ]
        # More than one kind of item only where each may also stand alone, so they have just been named.
        return [f"list of {inner[0] if len(inner) == 1 else 'these'}"]
    if kind == "object":
        inner = describe(root, node["additionalProperties"])
        keys = "chemical symbol" if node.get("propertyNames", {}).get("format") == "element" else "text"
        return [f"mapping from {keys} to {inner}"]
    if kind == "boolean":
        return ["true", "false"]
    if kind == "null":
        return ["null"]
    if kind == "string":
        word = {"path": "path", "element": "chemical symbol"}.get(node.get("format"), "text")
    else:
        word = {"integer": "whole number", "number": "number"}[kind]
    return [(_plural(word) if plural else word) + _range(node)]


def _range(node: Node) -> str:
    above, below = node.get("exclusiveMinimum"), node.get("exclusiveMaximum")
    least, most = node.get("minimum"), node.get("maximum")
    if above is not None and below is not None:
        return f" > {above:g} and < {below:g}"
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    limits = [(" > ", above), (" < ", below), (" ≥ ", least), (" ≤ ", most)]
    return "".join(f"{sign}{limit:g}" for sign, limit in limits if limit is not None)
