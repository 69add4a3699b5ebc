"""Nearest valid word for a misspelt one."""

import difflib
from collections.abc import Iterable


def similarity(word: str, other: str) -> float:
    """1 for equal words, 0 for words without a common letter; case and - versus _ do not count."""
    return difflib.SequenceMatcher(None, _plain(word), _plain(other)).ratio()


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice most similar to ``word``; None if none reaches a similarity of ``cutoff``."""
    best = max(choices, key=lambda choice: similarity(word, choice), default=None)
    return best if best is not None and similarity(word, best) >= cutoff else None


def did_you_mean(word: str, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence to append to an error message, with its leading space; empty if nothing is near."""
    found = nearest(word, choices, cutoff)
    return f" Did you mean '{found}'?" if found else ""


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")
