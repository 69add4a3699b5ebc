"""What to write instead of a word or a key that does not exist."""

import difflib
from collections.abc import Iterable

from equipot.config.describe import Node, SectionSchema, join_or, node_at, options, sections

# Names of our keys in other programs, too different for a comparison of letters.
_OTHER_NAMES = {
    "lr": "learning_rate",
    "r_max": "cutoff",
    "rcut": "cutoff",
    "num_features": "channels",
    "max_epochs": "epochs",
    "e0s": "atomic_energies",
    "elements": "species",
    "chemical_symbols": "species",
}

# How outputs of usual names are declared; others as the last one.
_OUTPUTS = {
    "dipole": "{per: structure, tensor: vector, unit: e*Ang}",
    "polarization": "{per: structure, tensor: vector, unit: e*Ang, modulo: cell}",
    "polarizability": "{per: structure, tensor: symmetric, unit: e^2*Ang^2/eV}",
    "charges": "{per: atom, tensor: scalar, unit: e}",
    "born_charges": "{per: atom, tensor: matrix, unit: e}",
    "": "{per: structure, tensor: scalar}",
}

_NEAR = 0.7  # similarity that counts as a misspelling: 'cutof' has 0.92, unrelated words up to about 0.6
_HOME_BONUS = 0.1  # of two equally similar keys, the one in the same section is meant


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


def suggest_key(
    root: Node, section: tuple[str | int, ...], key: str, model_type: str | None, of_outputs: bool = False
) -> str:
    """A sentence on what was probably meant by an unknown key in ``section``.

    ``root`` is the JSON Schema; ``model_type``: ``type`` of the configuration's model, None if it has none.
    ``of_outputs``: outputs have a key by their name there.
    """
    node = node_at(root, section, model_type)
    section = tuple(part for part in section if isinstance(part, str))  # an item of a list has its keys
    scores, home = {}, []
    for s in sections(root):
        if of_outputs and s.place[:2] == ("model", "outputs"):
            continue
        at_home = s.place == section and s.model_type in (None, model_type)
        home += s.properties if at_home else ()
        for name in s.properties:
            same = _OTHER_NAMES.get(key.lower()) == name
            score = (1.0 if same else similarity(key, name)) + (_HOME_BONUS if at_home else 0.0)
            scores.setdefault(score, []).append((name, s, at_home))
    if not home:  # under names of the user's
        home = [name for option in options(root, node) for name in option.get("properties", ())]
        if hint := did_you_mean(key, home):
            return hint.strip()
    best = max(scores)
    if best < _NEAR:
        return f"Valid here: {', '.join(home)}.{_declaration(key) if of_outputs else ''}"
    near = scores[best]
    name = next((name for name, _, at_home in near if at_home), None)
    if name is not None:
        return f"Did you mean '{name}'?"
    name, places = near[0][0], join_or(_section_names([s for _, s, _ in near]))
    return f"'{key}' belongs {places}." if name == key else f"Did you mean '{name}' {places}?"


def _declaration(name: str) -> str:
    declared = _OUTPUTS[nearest(name, _OUTPUTS) or ""]
    return f" Another label is that of an output, which `model.outputs: {{{name}: {declared}}}` declares."


def _section_names(found: list[SectionSchema]) -> list[str]:
    """'under training', 'at the top level'; the model type where a key is not for all types."""
    types: dict[tuple[str, ...], set[str | None]] = {}
    for section in found:
        types.setdefault(section.place, set()).add(section.model_type)
    names = []
    for place, model_types in types.items():
        name = f"under '{'.'.join(place)}'" if place else "at the top level"
        only = model_types.copy().pop() if len(model_types) == 1 else None
        names.append(f"{name} with type: {only}" if only else name)
    return names
