"""Wording of messages."""

# What ``check_labels`` says where a label is missing: to who trains, and to who runs a command on files.
YAML_ADVICE = "Set data.labels.{kind} to the name the file uses, or to null to do without."
KEY_ADVICE = "Give the name the file uses with --{kind}-key, or none to do without."


def counted(number: float, noun: str) -> str:
    """Such as ``1 frame``, ``2 frames`` or ``1.25 epochs``."""
    digits = f"{number:.4g}" if isinstance(number, float) else number
    return f"{digits} {noun}{'s' * (number != 1)}"
