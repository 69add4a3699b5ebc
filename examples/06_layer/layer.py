"""Layers of one's own from equipot's convolution, and a network of them that takes noise off a molecule.

python examples/06_layer/layer.py [--steps 300]
"""

import argparse
from pathlib import Path

import torch
from ase import Atoms
from ase.io import read
from e3nn import o3
from torch import Tensor, nn

from equipot.data.dataset import graph_from_atoms
from equipot.graph import AtomicGraph, collate, edge_vectors
from equipot.nn.linear import EquivariantLinear
from equipot.nn.radial import BesselBasis, PolynomialCutoff
from equipot.nn.spherical import SphericalHarmonics
from equipot.ops.convolution import Convolution
from equipot.ops.paths import convolution_paths

SPECIES, CUTOFF = ["H", "C", "O"], 4.0
MOLECULES = Path(__file__).parents[1] / "01_molecule" / "train.xyz"


class EdgeLayer(nn.Module):
    """x_i ← W₁ x_i + 1/n_i Σ_j W₂ (w_ij · x_j ⊗ Y(r̂_ij)), w_ij a perceptron of what is known of the edge.

    DiffDock's layer (G. Corso et al., ICLR 2023), whose weights depend on edge, center and neighbor; W₂, one
    for all edges, mixes the channels that each edge weights one by one.

    Args:
        irreps_in, irreps_out: of x; the first block holds even scalars.
        irreps_sh: of the harmonics, as ``0e+1o+2e``.
        num_edge_features: invariant ones of each edge.
    """

    def __init__(self, irreps_in: str, irreps_sh: str, irreps_out: str, num_edge_features: int):
        super().__init__()
        self.convolution = Convolution(convolution_paths(irreps_in, irreps_sh, irreps_out))
        irreps_in, irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.num_scalars = irreps_in[0].mul
        width = num_edge_features + 2 * self.num_scalars
        self.weights = nn.Sequential(
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, self.convolution.num_weights)
        )
        self.mix = EquivariantLinear(self.convolution.irreps_out, irreps_out, partial=True)
        self.keep = EquivariantLinear(irreps_in, irreps_out, partial=True)

    def forward(self, x: Tensor, sh: Tensor, edge_features: Tensor, edge_index: Tensor) -> Tensor:
        """(N, irreps_in.dim), (E, irreps_sh.dim), (E, num_edge_features), (2, E) → (N, irreps_out.dim)."""
        center, neighbor = edge_index
        scalars = x[:, : self.num_scalars]
        known = torch.cat([edge_features, scalars[center], scalars[neighbor]], dim=1)
        summed = self.convolution(x, sh, self.weights(known), edge_index)
        count = torch.bincount(center, minlength=len(x)).clamp(min=1)
        return self.keep(x) + self.mix(summed / count.unsqueeze(1))


class FullyConnected(nn.Module):
    """e3nn's ``FullyConnectedTensorProduct`` with weights for each edge, summed over the edges of a center.

        out[i, w, k] = 1/√n Σ_e Σ_p Σ_u W[e, p, u, w] Σ_{i'j} C^p[k, i', j] Y[e, j] x[neighbor(e), i', u]

    n the number of channels u in all paths p into the output irrep. It is a `Convolution` of copies of x, one
    for each channel w, and a sum: exact, and dear, as the product itself, which has mul_in × mul_out weights
    per path. `EdgeLayer` has mul_in.
    """

    def __init__(self, irreps_in: str, irreps_sh: str, irreps_out: str):
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), o3.Irreps(irreps_out)
        self.convolutions = nn.ModuleList()
        for copies, irrep in self.irreps_out:
            copied = o3.Irreps([(mul * copies, ir) for mul, ir in self.irreps_in])
            table = convolution_paths(copied, irreps_sh, o3.Irreps([(1, irrep)]))
            self.convolutions.append(Convolution(table))
        # A path's weights are (channels in, channels out), those of a block of irreps_out lie together.
        self.num_weights = sum(convolution.num_weights for convolution in self.convolutions)

    def forward(self, x: Tensor, sh: Tensor, weights: Tensor, edge_index: Tensor) -> Tensor:
        """(N, irreps_in.dim), (E, irreps_sh.dim), (E, num_weights), (2, E) → (N, irreps_out.dim)."""
        parts = []
        of_convolutions = weights.split([c.num_weights for c in self.convolutions], dim=1)
        blocks = x.split([block.dim for block in self.irreps_in], dim=1)
        shapes = zip(self.irreps_out, self.convolutions, of_convolutions, strict=True)
        for (copies, irrep), convolution, own in shapes:
            copied = torch.cat([block.repeat_interleave(copies, dim=1) for block in blocks], dim=1)
            summed = convolution(copied, sh, own, edge_index).view(len(x), irrep.dim, -1, copies)
            parts.append((summed.sum(2) * summed.shape[2] ** -0.5).flatten(1))
        return torch.cat(parts, dim=1)


class Denoiser(nn.Module):
    """For each atom the displacement (Å) that takes noise off a structure."""

    def __init__(self, irreps: str = "16x0e+8x1o+8x1e+4x2e", irreps_sh: str = "0e+1o+2e", layers: int = 3):
        super().__init__()
        num_scalars = o3.Irreps(irreps)[0].mul
        self.embedding = nn.Embedding(len(SPECIES), num_scalars)
        self.basis = BesselBasis(CUTOFF, 8, PolynomialCutoff(6))
        self.harmonics = SphericalHarmonics(o3.Irreps(irreps_sh).lmax)
        first = [f"{num_scalars}x0e", *[irreps] * (layers - 1)]
        self.layers = nn.ModuleList(EdgeLayer(each, irreps_sh, irreps, 8) for each in first)
        self.head = EquivariantLinear(o3.Irreps(irreps), o3.Irreps("1x1o"))
        self.float()

    def forward(self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor) -> Tensor:
        """(E, 3) Å, (2, E), (N,) → (N, 3) Å."""
        edge_vec = edge_vec.to(self.embedding.weight.dtype)
        length = edge_vec.norm(dim=1, keepdim=True)
        features, sh = self.basis(length), self.harmonics(edge_vec / length)
        x = self.embedding(atom_types)
        for layer in self.layers:
            x = layer(x, sh, features, edge_index)
        return self.head(x)


def noisy(
    frames: list[Atoms], number: int, sigma: float, generator: torch.Generator
) -> tuple[AtomicGraph, Tensor]:
    """A graph of some frames with normal noise (Å), and the displacements that undo it, without the mean."""
    graphs, displacements = [], []
    for n in torch.randint(len(frames), (number,), generator=generator):
        atoms = frames[n].copy()
        noise = sigma * torch.randn(len(atoms), 3, generator=generator)
        noise -= noise.mean(0)
        atoms.positions += noise.numpy()
        graphs.append(graph_from_atoms(atoms, SPECIES, CUTOFF))
        displacements.append(-noise)
    return collate(graphs), torch.cat(displacements)


def train(steps: int, sigma: float = 0.1, seed: int = 0) -> tuple[Denoiser, float, float]:
    """The network; RMS (Å, per component) of the noise of new structures, and of what is left of it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    frames = [atoms for atoms in read(MOLECULES, ":") if len(atoms) > 1]
    network = Denoiser()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        graph, target = noisy(frames, 8, sigma, generator)
        loss = (network(edge_vectors(graph), graph.edge_index, graph.atom_types) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    graph, target = noisy(frames, 100, sigma, generator)
    left = network(edge_vectors(graph), graph.edge_index, graph.atom_types).detach() - target
    return network, float(target.square().mean().sqrt()), float(left.square().mean().sqrt())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    _, before, after = train(parser.parse_args().steps)
    print(f"noise {before:.3f} Å, what is left of it {after:.3f} Å (RMS per component)")
