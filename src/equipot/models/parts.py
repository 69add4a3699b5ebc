"""Readable names for groups of a potential's weights, to freeze them or to train them more slowly."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from equipot.errors import ConfigError

# Patterns of names: the parts that every architecture has. A weight may belong to several. Beside these there
# is `potential`: all but `outputs`, which is what energies depend on.
_PARTS = {
    "layers": ("network.layers.*",),
    "readout": ("network.readout.*",),
    "atomic_energies": ("scale_shift.shift",),
    "scale": ("scale_shift.scale",),
    "outputs": ("network.further.*", "network.previous.*", "outputs.*"),
}


def parts_of(potential: nn.Module) -> dict[str, list[str]]:
    """The names of the weights in each part of a Potential; parts that it does not have are left out."""
    network = potential.network
    patterns = dict(_PARTS)
    patterns |= {part: tuple(f"network.{p}" for p in own) for part, own in network.parts().items()}
    patterns |= {f"layers.{i}": (f"network.layers.{i}.*",) for i in range(len(network.layers))}
    names = [name for name, _ in potential.named_parameters()]
    parts = {part: [n for n in names if any(fnmatchcase(n, p) for p in of)] for part, of in patterns.items()}
    parts["potential"] = [name for name in names if name not in parts["outputs"]]
    return {part: found for part, found in parts.items() if found}


def _known_parts(potential: nn.Module, parts: Iterable[str], key: str) -> dict[str, list[str]]:
    """`parts_of`; raises ConfigError if it lacks one of ``parts``, which the setting ``key`` names."""
    known = parts_of(potential)
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ConfigError(
            f"{key}: this model has no part '{unknown[0]}'. Its parts are: {', '.join(sorted(known))}."
        )
    return known


def freeze(potential: nn.Module, parts: Iterable[str]) -> None:
    """Take the weights of ``parts`` out of the training.

    Raises:
        ConfigError: a part does not exist, or nothing would be left to train.
    """
    parts = list(parts)
    known = _known_parts(potential, parts, "fine_tune.freeze")
    frozen = {name for part in parts for name in known[part]}
    for name, weight in potential.named_parameters():
        if name in frozen:
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in potential.parameters()):
        raise ConfigError(f"fine_tune.freeze: with {', '.join(parts)} frozen nothing is left to train.")


def learning_rate_factors(potential: nn.Module, factors: dict[str, float]) -> dict[str, float]:
    """The factor of each weight by name, from those of parts; where parts overlap, factors multiply.

    Raises:
        ConfigError: a part does not exist, or none of its weights is trained.
    """
    known = _known_parts(potential, factors, "fine_tune.learning_rate_factors")
    trained = {name for name, weight in potential.named_parameters() if weight.requires_grad}
    idle = [part for part in factors if trained.isdisjoint(known[part])]
    if idle:
        raise ConfigError(
            f"fine_tune.learning_rate_factors: the part '{idle[0]}' is frozen or not trained, so its factor "
            "would do nothing: leave it out."
        )
    found = {name: 1.0 for name, _ in potential.named_parameters()}
    for part, factor in factors.items():
        for name in known[part]:
            found[name] *= factor
    return found
