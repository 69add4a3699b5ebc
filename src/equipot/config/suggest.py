"""What to write instead of a key that does not exist."""

from dataclasses import dataclass

from equipot.config.describe import Node, join_or, sections
from equipot.config.nearest import similarity

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

_NEAR = 0.7  # similarity that counts as a misspelling: 'cutof' has 0.92, unrelated words up to about 0.6
_HOME_BONUS = 0.1  # of two equally similar keys, the one in the same section is meant


@dataclass(frozen=True)
class _Key:
    name: str
    section: tuple[str, ...]
    model_type: str | None


def suggest_key(root: Node, section: tuple[str | int, ...], key: str, model_type: str | None) -> str:
    """A sentence on what was probably meant by an unknown key.

    Args:
        root: JSON Schema of the configuration.
        section: place of the section in which the key was found.
        key: the unknown key.
        model_type: ``type`` of the configuration's model, None if it has none.
    """
    section = tuple(part for part in section if isinstance(part, str))  # an item of a list has its keys
    known = [_Key(name, s.place, s.model_type) for s in sections(root) for name in s.properties]
    home = [k for k in known if k.section == section and k.model_type in (None, model_type)]
    scores = {k: _score(key, k, k in home) for k in known}
    best = max(scores.values())
    near = [k for k in known if scores[k] == best]
    at_home = [k for k in near if k in home]
    if best < _NEAR:
        return f"Valid here: {', '.join(k.name for k in home)}."
    if at_home:
        return f"Did you mean '{at_home[0].name}'?"
    places = join_or(_section_names(near))
    if near[0].name == key:
        return f"'{key}' belongs {places}."
    return f"Did you mean '{near[0].name}' {places}?"


def _score(key: str, candidate: _Key, at_home: bool) -> float:
    same = _OTHER_NAMES.get(key.lower()) == candidate.name
    return (1.0 if same else similarity(key, candidate.name)) + (_HOME_BONUS if at_home else 0.0)


def _section_names(keys: list[_Key]) -> list[str]:
    """'under training', 'at the top level'; the model type where a key is not for all types."""
    types: dict[tuple[str, ...], set[str | None]] = {}
    for key in keys:
        types.setdefault(key.section, set()).add(key.model_type)
    names = []
    for section, model_types in types.items():
        name = f"under '{'.'.join(section)}'" if section else "at the top level"
        only = (
            f" with type: {model_types.copy().pop()}"
            if len(model_types) == 1 and None not in model_types
            else ""
        )
        names.append(name + only)
    return names
