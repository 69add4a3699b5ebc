"""What may be chosen of NequIP models beside the contract: that it is trained, and what becomes of it."""

import pytest
import torch
from ase import Atoms
from ase.build import molecule

from equipot.config import NequIPConfig
from equipot.data import graph_from_atoms
from equipot.models.build import build_potential
from equipot.models.parts import parts_of
from equipot.models.predict import predict

SPECIES, CUTOFF = ["H", "C", "O"], 3.5
SMALL = {"type": "nequip", "cutoff": CUTOFF, "dtype": "float64", "l_max": 1, "layers": 2, "channels": 4}
ALL = {
    "trainable_bessel": True, "biases": True, "xplor_start": 2.8, "self_connection": "shared",
    "element_factors": True, "readout_hidden": (5,), "first_self_connection": False,
    "pair_cutoffs": {"H-H": 2.9, "C-O": 3.2},
}  # fmt: skip


@pytest.mark.parametrize("radial_intervals", [None, 32])
def test_every_weight_is_trained(radial_intervals):
    """Gradients of a loss on forces against central differences, h = 1e-5: errors of 1e-10 and of h²."""
    torch.manual_seed(1)
    config = NequIPConfig(**SMALL, **ALL, radial_hidden=(8,), radial_intervals=radial_intervals)
    potential = build_potential(config, SPECIES, 6.0, [0.0] * 3, 1.3).train()
    graph = graph_from_atoms(molecule("CH3CH2OH"), SPECIES, CUTOFF)

    def loss():
        return predict(potential, graph).forces.square().sum()

    weights = {n: w for n, w in potential.named_parameters() if w.requires_grad}
    for name, gradient in zip(weights, torch.autograd.grad(loss(), list(weights.values())), strict=True):
        # Behind the last gate every constant is one of the energy.
        assert gradient.abs().max() > 1e-9, name
        weight, at = weights[name].data, gradient.abs().argmax()
        ends = []
        for step in (1e-5, -2e-5):
            weight.view(-1)[at] += step
            ends.append(loss().item())
        weight.view(-1)[at] += 1e-5
        assert gradient.view(-1)[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)
    assert sum(name.endswith("frequencies") for name in weights) == 2
    assert sum(name.endswith(".bias") for name in weights) == 3
    assert sum(name.endswith(".factors") for name in weights) == 2
    radial = parts_of(potential)["radial"]
    assert sum(name.endswith("frequencies") for name in radial) == 2


def test_splines_of_an_envelope_with_a_kink():
    """Two pieces of splines are nearer to the network than one, which has a free end as well."""
    torch.manual_seed(1)
    graph = graph_from_atoms(molecule("CH3CH2OH"), SPECIES, CUTOFF)
    errors = {}
    for start in (2.8, 2.83):  # the second does not divide the cutoff
        config = NequIPConfig(**SMALL, xplor_start=start, radial_intervals=None)
        potential = build_potential(config, SPECIES, 6.0, [0.0] * 3, 1.3).eval()
        exact = predict(potential, graph).forces
        assert exact.abs().max() > 0.1
        potential.network.tabulate(200)
        errors[start] = (predict(potential, graph).forces - exact).abs().max().item()
        potential.network.kink = None  # as if there were none
        potential.network.tabulate(200)
        assert (predict(potential, graph).forces - exact).abs().max() > 3 * errors[start]
    assert max(errors.values()) < 1e-6


def test_cutoffs_of_pairs():
    """A pair does not interact from its cutoff on, and repulsion ends there; each order may have its own."""
    pairs = {"H-O": 2.6, "O-H": 2.4, "O-O": 2.2}
    config = NequIPConfig(**SMALL, pair_cutoffs=pairs, zbl="cutoff", scale=1.0)
    assert config.cutoffs_of_pairs(["O", "H", "C"]) == [[2.2, 2.4, 3.5], [2.6, 3.5, 3.5], [3.5, 3.5, 3.5]]
    torch.manual_seed(1)
    potential = build_potential(config, SPECIES, 6.0, [0.0] * 3, 1.3).eval()
    none = build_potential(NequIPConfig(**SMALL, zbl="cutoff"), SPECIES, 6.0, [0.0] * 3, 1.3).eval()
    none.load_state_dict(potential.state_dict())

    def energies(model, symbols, distance):
        graph = graph_from_atoms(Atoms(symbols, [[0, 0, 0], [distance, 0, 0]]), SPECIES, CUTOFF)
        return predict(model, graph).atom_energies.detach()

    alone = energies(none, "HO", 5.0)
    at_hydrogen, at_oxygen = (energies(potential, "HO", 2.5) - alone).abs().tolist()
    assert at_hydrogen > 1e-9 and at_oxygen < 1e-12
    torch.testing.assert_close(energies(potential, "OO", 2.2), energies(none, "OO", 5.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(energies(potential, "CH", 2.5), energies(none, "CH", 2.5), rtol=0, atol=1e-12)


def test_an_isolated_atom_has_its_reference_energy():
    torch.manual_seed(1)
    graph = graph_from_atoms(Atoms("O"), SPECIES, CUTOFF)
    for first in (True, False):
        config = NequIPConfig(**SMALL, first_self_connection=first, readout_hidden=(4,))
        potential = build_potential(config, SPECIES, 6.0, [-1.0, -2.0, -3.0], 1.3).eval()
        assert (predict(potential, graph).energy.item() == -3.0) is not first


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"pair_cutoffs": {"H-O": 3.6}}, "H-O: 3.6 Å is more than the cutoff, 3.5"),
        ({"pair_cutoffs": {"HO": 3.0}}, "expected two chemical symbols, such as H-O, found 'HO'"),
        ({"pair_cutoffs": {"H-Ox": 3.0}}, "'Ox' is not a chemical symbol"),
        ({"xplor_start": 3.5}, "must be below the cutoff"),
        ({"layer_channels": ((4, 2), (4,), (4,))}, "has 3 lists"),
        ({"layer_channels": ((4, 2, 2), (4,))}, "of at most l_max"),
    ],
)
def test_what_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        NequIPConfig(**SMALL, **wrong)
