"""Wording of messages."""

# For labels that a command reads: what ``check_labels`` says where one is missing.
KEY_ADVICE = "Give the name the file uses with --{kind}-key, or none to do without."


def counted(number: float, noun: str) -> str:
    """Such as ``1 frame``, ``2 frames`` or ``1.25 epochs``."""
    digits = f"{number:.4g}" if isinstance(number, float) else number
    return f"{digits} {noun}{'s' * (number != 1)}"
