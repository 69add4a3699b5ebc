"""Energy terms beside the network."""

import math

import pytest
import torch

from equipot.config import NequIPConfig
from equipot.models.build import build_potential
from equipot.models.terms import ZBL, SpeciesScaleShift


def test_zbl_of_a_pair_against_the_formula():
    """Two silicon atoms at 0.5 Å, written out by hand; the envelope is u(r / 2R), R = 1.11 Å."""
    r = 0.5
    energies = ZBL([14])(
        torch.tensor([[r, 0, 0], [-r, 0, 0]], dtype=torch.float64),
        torch.tensor([[0, 1], [1, 0]]),
        torch.tensor([0, 0]),
    )
    a = 0.4685 / (2 * 14**0.23)
    phi = sum(
        c * math.exp(-d * r / a)
        for c, d in [(0.18175, 3.1998), (0.50986, 0.94229), (0.28022, 0.4029), (0.02817, 0.20162)]
    )
    x = r / 2.22
    envelope = 1 - 28 * x**6 + 48 * x**7 - 21 * x**8
    # 14.3996 eV Å is e²/4πε₀ to five digits.
    assert energies.sum().item() == pytest.approx(14.39964 * 14**2 / r * phi * envelope, rel=1e-5)
    assert energies[0] == energies[1]


def test_zbl_ends_at_the_sum_of_covalent_radii():
    beyond = torch.tensor([[2.23, 0, 0]], dtype=torch.float64)
    assert ZBL([14])(beyond, torch.tensor([[0], [1]]), torch.tensor([0, 0])).abs().max() == 0


def test_scale_and_shift_by_species():
    term = SpeciesScaleShift([2.0, 3.0], [-10.0, -20.0], trainable=False)
    out = term(torch.tensor([1.0, 1.0], dtype=torch.float32), torch.tensor([1, 0]))
    assert out.tolist() == [-17.0, -8.0]
    assert out.dtype == torch.float64


def pair_energies(scale, force_rms: float, avg_num_neighbors: float = 2.0) -> torch.Tensor:
    """(2,) eV, of hydrogen and oxygen 1 Å apart in a potential with the same weights at every call."""
    config = NequIPConfig(type="nequip", l_max=1, layers=1, channels=2, dtype="float64", scale=scale)
    torch.manual_seed(0)
    potential = build_potential(config, ["H", "O"], avg_num_neighbors, [-13.0, -2040.0], force_rms)
    edge_vec = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    types = torch.tensor([0, 1])
    energies, _, _ = potential(edge_vec, torch.tensor([[0, 1], [1, 0]]), types, torch.ones(2, dtype=bool))
    return energies.detach()


def test_scale_is_the_size_of_the_forces_or_a_given_number():
    shift = torch.tensor([-13.0, -2040.0], dtype=torch.float64)
    of_network = pair_energies(1.0, 5.0) - shift
    assert of_network.abs().min() > 1e-3
    for scale, force_rms, expected in (("force_rms", 2.5, 2.5), ("force_rms", 0.5, 0.5), (3.0, 0.5, 3.0)):
        # roundings of 2040 eV
        torch.testing.assert_close(
            pair_energies(scale, force_rms), shift + expected * of_network, rtol=0, atol=1e-11
        )


def test_messages_are_divided_by_the_neighbors_but_never_multiplied():
    """With less than one neighbor on average they would grow without bound."""
    assert not torch.equal(pair_energies(1.0, 1.0, 8.0), pair_energies(1.0, 1.0, 2.0))
    assert torch.equal(pair_energies(1.0, 1.0, 0.1), pair_energies(1.0, 1.0, 1.0))
