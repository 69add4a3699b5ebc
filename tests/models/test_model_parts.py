"""Readable names for groups of weights."""

import pytest

from equipot.config import AllegroConfig, NequIPConfig
from equipot.errors import ConfigError
from equipot.models.build import build_potential
from equipot.models.parts import freeze, learning_rate_factors, parts_of

CONFIGS = {
    "nequip": NequIPConfig(type="nequip", l_max=1, layers=2, channels=2),
    "nequip without splines": NequIPConfig(
        type="nequip", l_max=1, layers=2, channels=2, radial_intervals=None
    ),
    "allegro": AllegroConfig(type="allegro", l_max=1, layers=2, channels=2),
}


@pytest.fixture(params=CONFIGS)
def potential(request):
    return build_potential(CONFIGS[request.param], ["H", "O"], 6.0, [-13.0, -2040.0], 1.0)


def test_every_weight_is_in_a_part(potential):
    parts = parts_of(potential)
    named = {name for names in parts.values() for name in names}
    assert named == {name for name, _ in potential.named_parameters()}
    assert {"embedding", "layers", "layers.0", "layers.1", "readout", "scale", "atomic_energies"} <= set(
        parts
    )
    assert ("radial" in parts) == (type(potential.network).__name__ == "NequIP")
    assert set(parts["layers"]) == {*parts["layers.0"], *parts["layers.1"]}
    assert not set(parts["layers.0"]) & set(parts["layers.1"])


def test_frozen_weights_are_those_of_the_parts(potential):
    freeze(potential, ["embedding", "layers.0"])
    parts = parts_of(potential)
    trained = {name for name, weight in potential.named_parameters() if weight.requires_grad}
    assert trained == {*parts["layers.1"], *parts["readout"]}  # scale and shift are not trained anyway


def test_factors_of_overlapping_parts_multiply(potential):
    factors = learning_rate_factors(potential, {"layers": 0.5, "layers.1": 0.1, "readout": 2.0})
    parts = parts_of(potential)
    for part, expected in (("embedding", 1.0), ("layers.0", 0.5), ("layers.1", 0.05), ("readout", 2.0)):
        assert {factors[name] for name in parts[part]} == {expected}


def test_unknown_parts_are_named(potential):
    with pytest.raises(ConfigError, match=r"fine_tune\.freeze: .*'layers\.2'.*embedding, layers, layers\.0"):
        freeze(potential, ["layers.2"])
    with pytest.raises(ConfigError, match=r"learning_rate_factors: .*'head'"):
        learning_rate_factors(potential, {"head": 0.1})
    freeze(potential, ["layers.0"])
    learning_rate_factors(potential, {"layers": 0.5})
    with pytest.raises(ConfigError, match=r"learning_rate_factors: the part .layers.0. is frozen"):
        learning_rate_factors(potential, {"layers.0": 0.5})
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(potential, ["embedding", "layers", "readout"])
