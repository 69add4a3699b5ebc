"""Wording of messages."""

import re

# What ``check_labels`` says where a label is missing: to who trains, and to who runs a command on files.
YAML_ADVICE = "Set data.labels.{kind} to the name the file uses, or to null to do without."
WITHOUT_ENERGIES = " A model of model.outputs alone has model.energy: false."
KEY_ADVICE = "Give the name the file uses with --{kind}-key, or none to do without."
_KEY = re.compile(r"data\.(unit|label)s\.(\w+)(?:: (-?[\w/^]+))?")


def naming_options(advice: str) -> str:
    """With the option of a command after each key of ``data`` in it, unless it names options already."""

    def both(match: re.Match) -> str:
        section, key, value = match.groups()
        option = f"--{key}-{'unit' if section == 'unit' else 'key'}"
        return f"{match[0]} ({option}{f' {value}' if value else ''})"

    return advice if "--" in advice else _KEY.sub(both, advice)


def counted(number: float, noun: str) -> str:
    """Such as ``1 frame``, ``2 frames`` or ``1.25 epochs``."""
    digits = f"{number:.4g}" if isinstance(number, float) else number
    return f"{digits} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """Such as ``1 h 05 min``, ``2 min 10 s``, ``3.4 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
