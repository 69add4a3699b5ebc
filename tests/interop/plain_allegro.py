"""Allegro's model in plain torch, with the names and attributes of nequip-allegro's."""

import math

import torch
from e3nn import o3
from plain_nequip import TYPES, apply, in_double, part, perceptron
from torch import nn

DEFAULT = {
    "r_max": 3.5, "l_max": 2, "parity": True, "layers": 2, "scalars": 5, "channels": 3, "width": 6,
    "hidden": [7], "two_body": [4], "coupled": True, "neighbors": 6.0, "pairs": None,
}  # fmt: skip


class PlainAllegro:
    """Atomic energies of edges, in float64, with random weights; ``graph``: as NequIP's GraphModel."""

    def __init__(self, **changes):
        self.o = o = {**DEFAULT, **changes}
        self.sh = sh = o3.Irreps.spherical_harmonics(o["l_max"])
        s, c, weights = o["scalars"], o["channels"], len(sh) * o["channels"]
        signs = (1, -1)
        allowed = o3.Irreps([(1, (d, p)) for d in range(o["l_max"] + 1) for p in signs])
        allowed = allowed if o["parity"] else sh
        norm = torch.tensor([[o["neighbors"] ** -0.5]])
        embed = {
            "center_embed": nn.Embedding(len(TYPES), o["width"] // 2),
            "neighbor_embed": nn.Embedding(len(TYPES), o["width"] // 2),
            "basis_linear": perceptron([5, o["width"]]),
        }
        basis = part(
            "BesselEdgeLengthEncoding",
            {"trainable": False},
            bessel_weights=torch.arange(1.0, 6.0).reshape(1, -1),
            cutoff=part("PolynomialCutoff", {"p": 6.0}),
        )
        tps, latents, irreps = nn.ModuleList(), nn.ModuleList(), sh
        for k in range(o["layers"]):
            last = k + 1 == o["layers"]
            found = [ir for _, ir in (o3.Irreps("0e") if last else allowed)]
            reachable = {ir for _, a in irreps for _, b in sh for ir in a * b}
            # Irreps from which products lead to scalars.
            out = o3.Irreps([(1, ir) for ir in found if ir in reachable and (last or ir.p == (-1) ** ir.l)])
            if not last and k + 2 < o["layers"]:
                out = o3.Irreps([(1, ir) for ir in found if ir in reachable])
            paths = sum(ir in a * b for _, ir in out for _, a in irreps for _, b in sh)
            shape = ((c,) if o["coupled"] else ()) + ((paths,) if paths > 1 else ())
            facts = {"irreps_in1": irreps, "irreps_in2": sh, "irreps_out": out}
            facts |= {"irrep_normalization": "component", "scatter_factor": None, "instructions": None}
            tps.append(part("Contracter", facts, weights=nn.Parameter(torch.randn(shape))))
            latents.append(perceptron([(k + 1) * s + c, *o["hidden"], s + (0 if last else weights)]))
            irreps = out
        allegro = part(
            "Allegro_Module",
            {
                "num_layers": o["layers"], "num_scalar_features": s, "num_tensor_features": c,
                "tensor_track_allowed_irreps": allowed,
            },
            first_layer_env_embed_projection=perceptron([s, s + weights]),
            avg_num_neighbors_norm=part("AvgNumNeighborsNorm", norm_const=norm),
            latents=latents,
            tps=tps,
        )  # fmt: skip
        recip = 1 / torch.tensor(o["pairs"] or o["r_max"]).reshape(-1 if o["pairs"] else ())
        embedding = part(
            "SequentialGraphNetwork", bessel_encode=basis, type_embed=part("ProductTypeEmbedding", **embed)
        )
        harmonics = {"irreps_out": sh, "normalize": True, "normalization": "component"}
        members = {
            "edge_norm": part("EdgeLengthNormalizer", {"r_max": o["r_max"]}, _rmax_recip=recip),
            "radial_chemical_embed": embedding,
            "scalar_embed_mlp": part("ScalarMLP", mlp_module=perceptron([o["width"], *o["two_body"], s])),
            "tensor_embed": part(
                "TwoBodySphericalHarmonicTensorEmbed",
                sh=part("SphericalHarmonics", harmonics),
                env_embed_linear=perceptron([s, weights]),
            ),
            "allegro": allegro,
            "edge_readout": part("ScalarMLP", mlp_module=perceptron([(o["layers"] + 1) * s, 4, 1])),
            "edge_eng_sum": part("EdgewiseReduce", {"reduce": "sum"}),
            "per_type_energy_scale_shift": part(
                "PerTypeScaleShift", scales=0.5 + torch.rand(len(TYPES), 1), shifts=torch.randn(1, 1)
            ),
            "total_energy_sum": part("AtomwiseReduce", {"reduce": "sum", "constant": 1.0}),
        }
        self.func = part("SequentialGraphNetwork", **members)
        model = part("ForceStressOutput", func=self.func)
        self.graph = part("GraphModel", {"type_names": TYPES}, model=model)

    def weighted(self, sh, weights):
        """(E, J), (E, C · degrees) → (E, C, J)."""
        weights = weights.view(len(sh), self.o["channels"], len(self.sh))
        return sh[:, None] * torch.cat(
            [weights[:, :, k : k + 1].expand(-1, -1, ir.dim) for k, (_, ir) in enumerate(self.sh)], dim=2
        )

    def contract(self, tp, one, two):
        """(E, C, I), (E, C, J) → (E, C, K)."""
        w, n, rows = tp.weights, 0, []
        w = w.reshape(self.o["channels"] if self.o["coupled"] else 1, -1)
        for _, ir in tp.irreps_out:
            row = 0
            for i, (_, a) in zip(tp.irreps_in1.slices(), tp.irreps_in1, strict=True):
                for j, (_, b) in zip(tp.irreps_in2.slices(), tp.irreps_in2, strict=True):
                    if ir in a * b:
                        coupling = o3.wigner_3j(a.l, b.l, ir.l) * ir.dim**0.5
                        product = torch.einsum("eci,ecj,ijk->eck", one[:, :, i], two[:, :, j], coupling)
                        row, n = row + w[:, n, None] * product, n + 1
            rows.append(row)
        return torch.cat(rows, dim=2)

    def __call__(self, edge_vec, edge_index, types):
        func, o = self.func, self.o
        center, of_edges = edge_index[0], types[edge_index]
        recip = func.edge_norm._rmax_recip
        if recip.numel() > 1:
            recip = recip[of_edges[0] * len(TYPES) + of_edges[1]].unsqueeze(1)
        x = edge_vec.norm(dim=1, keepdim=True) * recip
        w = func.radial_chemical_embed.bessel_encode.bessel_weights
        basis = torch.sinc(x * w) * w * (1 - 28 * x**6 + 48 * x**7 - 21 * x**8) * (x < 1)
        sh = o3.spherical_harmonics(self.sh, edge_vec, True, normalization="component")
        embed = func.radial_chemical_embed.type_embed
        pair = [embed.center_embed(of_edges[0]), embed.neighbor_embed(of_edges[1])]
        scalars = apply(embed.basis_linear, basis) * torch.cat(pair, dim=1)
        scalars = apply(func.scalar_embed_mlp.mlp_module, scalars)
        tensors = self.weighted(sh, apply(func.tensor_embed.env_embed_linear, scalars))
        found = apply(func.allegro.first_layer_env_embed_projection, scalars)
        kept, norm = [found[:, : o["scalars"]]], func.allegro.avg_num_neighbors_norm.norm_const
        for tp, latent in zip(func.allegro.tps, func.allegro.latents, strict=True):
            sent = self.weighted(sh, found[:, o["scalars"] :])
            summed = torch.zeros(len(types), *sent.shape[1:]).index_add(0, center, sent) * norm
            tensors = self.contract(tp, tensors, summed[center])
            found = apply(latent, torch.cat([*kept, tensors[:, :, 0]], dim=1))
            kept.append(found[:, : o["scalars"]])
        pairs = apply(func.edge_readout.mlp_module, torch.cat(kept, dim=1))[:, 0]
        energy = torch.zeros(len(types)).index_add(0, center, pairs) * norm[0] / math.sqrt(2)
        last = func.per_type_energy_scale_shift
        return energy * last.scales[types, 0] + last.shifts[0]


def make(**changes) -> PlainAllegro:
    torch.manual_seed(0)
    return in_double(PlainAllegro, **changes)
