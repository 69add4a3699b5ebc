"""The reference page of the configuration, made from the schema.

python -m equipot.config.reference > docs/configuration.md
"""

import json
import sys

from equipot.config.describe import Node, SectionSchema, describe, options, sections
from equipot.config.schema import json_schema

EXAMPLE = """\
data:
  train: train.xyz
  validation: 50            # frames drawn from train.xyz
  labels: {energy: energy, forces: forces}
model:
  type: nequip
  cutoff: 5.0               # Å
  channels: 32
training:
  epochs: 200
  batch_size: 5
  learning_rate: 0.01
"""

_INTRODUCTION = f"""\
# Configuration

<!-- Made by `python -m equipot.config.reference > docs/configuration.md`; edit the schema, not this page. -->

One YAML file describes a training. A complete one:

```yaml
{EXAMPLE}```

Everything left out has the default given below. Lengths are in Å, energies in eV, whatever the units in the
structure files.

- Any value can be changed on the command line: `equipot train config.yaml training.epochs=10 model.l_max=1`.
  What stands after `=` is YAML.
- Relative names of structure files start at the folder of the YAML file, on the command line at the working
  directory. `run.directory` starts at the working directory.
- Unknown keys, duplicate keys and values of the wrong type or range are errors; all are listed at once, each
  with its line and the nearest valid key.
- Plain values follow YAML 1.2: `1e-3` is a number, `No` is nobelium, `yes` and `on` are words: write `true`.
- `equipot schema > equipot.schema.json` writes the JSON Schema. Many editors then complete and check a YAML
  file that starts with the line `# yaml-language-server: $schema=equipot.schema.json`.
"""


def reference_page() -> str:
    """The whole page in Markdown: an introduction, then one table of keys for each section."""
    root = json_schema()
    parts = [_INTRODUCTION]
    found = [section for section in sections(root) if section.place]
    # The same section at several places (the entries of train, validation and test) is described once.
    for title in dict.fromkeys(section.node["title"] for section in found):
        parts.append(_section_text(root, [s for s in found if s.node["title"] == title]))
    return "\n".join(parts)


def _section_text(root: Node, same: list[SectionSchema]) -> str:
    section = same[0]
    level = "#" * (len(section.place) + 1)
    title = ", ".join(dict.fromkeys(f"`{'.'.join(s.place)}`" for s in same))
    if section.model_type and len(section.place) == 1:
        title += f" with `type: {section.model_type}`"
    rows = [_row(root, section, key, node) for key, node in section.properties.items()]
    table = ["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return "\n".join([f"{level} {title}", "", " ".join(section.node["description"].split()), "", *table, ""])


def _row(root: Node, section: SectionSchema, key: str, node: Node) -> str:
    required = key in section.node.get("required", [])
    default = "required" if required else _default_text(node)
    # pydantic leaves out a description that only repeats that of the section.
    meaning = node.get("description") or options(root, node)[0]["description"]
    cells = [f"`{key}`", _value_text(root, node), default, meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value_text(root: Node, node: Node) -> str:
    alternatives = options(root, node)
    if any("properties" in option and "words" not in option for option in alternatives):
        nullable = any(option.get("type") == "null" for option in alternatives)
        return "section or null" if nullable else "section"
    return describe(root, node)


def _default_text(node: Node) -> str:
    default = node["default"]
    if isinstance(default, dict):
        return "see below"
    return f"`{json.dumps(default).strip(chr(34))}`"


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stdout.write(reference_page())
