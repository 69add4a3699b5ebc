"""A strictly local model evaluated a few atoms at a time gives what it gives all at once."""

import pytest
import torch

from equipot.config import AllegroConfig
from equipot.models.build import build_potential


@pytest.mark.parametrize("limit", [1, 7, 40])
@pytest.mark.parametrize("sort", [True, False])
def test_parts_make_no_difference(limit, sort):
    torch.manual_seed(0)
    config = AllegroConfig(
        type="allegro", dtype="float64", cutoff=4.0, l_max=1, scalar_channels=8, channels=4, zbl=True
    )
    potential = build_potential(config, ["H", "O"], 6.0, [-13.0, -2040.0], 1.0).eval()
    num_atoms, num_edges = 12, 60
    center = torch.randint(num_atoms - 1, (num_edges,))  # the last atom has no edge
    if sort:
        center = center.sort().values
    edge_index = torch.stack([center, torch.randint(num_atoms, (num_edges,))])
    edge_vec = torch.randn(num_edges, 3, dtype=torch.float64)
    edge_vec *= (0.8 + 3 * torch.rand(num_edges, 1, dtype=torch.float64)) / edge_vec.norm(dim=1, keepdim=True)
    arguments = (edge_vec, edge_index, torch.randint(2, (num_atoms,)), torch.rand(num_atoms) < 0.8)
    whole = potential(*arguments)
    potential.edges_in_flight = {"cpu": limit}
    for module in (potential, torch.jit.script(potential)):
        for part, expected in zip(module(*arguments), whole, strict=True):
            # The same sums in another order, in float64.
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-12)
