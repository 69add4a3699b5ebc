"""NequIP's model in e3nn's own modules, with the names and attributes of its: what imports are compared with.

Nothing of equipot's models is in it. Modules carry the names of NequIP's classes, by which a dump tells them.
"""

import math
from itertools import pairwise

import torch
from e3nn import o3
from e3nn.nn import Gate
from torch import nn

TYPES = ["O", "H", "C"]
NUMBERS = [8, 1, 6]
DEFAULT = {
    "r_max": 3.5,
    "l_max": 1,
    "parity": True,
    "features": [4, 4],
    "layers": 3,
    "embedding": 4,
    "neighbors": [6.0],
    "radial": [8],
    "readout": [],
    "trainable": False,
    "pairs": None,  # (3, 3) Å
    "zbl": False,
    "first_connection": False,
    "act": nn.functional.silu,
}


def part(kind: str, facts: dict | None = None, **members) -> nn.Module:
    """A module of a class of this name, with attributes, modules, weights and buffers."""
    module = type(kind, (nn.Module,), {})()
    for name, value in (facts or {}).items():
        setattr(module, name, value)
    for name, value in members.items():
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            module.register_buffer(name, value)
        else:
            setattr(module, name, value)
    return module


def perceptron(widths: list[int]) -> nn.Module:
    mlp = nn.Sequential()
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        if k > 0:
            mlp.append(nn.SiLU())
        alpha = torch.tensor((math.sqrt(2) if k > 0 else 1.0) / math.sqrt(n_in))
        mlp.append(part("ScalarLinearLayer", weight=nn.Parameter(torch.randn(n_in, n_out)), alpha=alpha))
    return part("ScalarMLPFunction", {"bias": False}, mlp=mlp)


def apply(function: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in function.mlp:
        x = layer(x) if isinstance(layer, nn.SiLU) else x @ (layer.weight * layer.alpha)
    return x


class PlainNequIP:
    """Atomic energies of edges, in float64, with random weights; ``graph``: as NequIP's GraphModel."""

    def __init__(self, **changes):
        self.o = o = {**DEFAULT, **changes}
        sh = o3.Irreps.spherical_harmonics(o["l_max"])
        signs = (1, -1) if o["parity"] else (1,)
        hidden = [(m, (d, s * (-1) ** d)) for d, m in enumerate(o["features"]) for s in signs]
        hidden = o3.Irreps(sorted(hidden, key=lambda block: (block[1][0], -block[1][1])))
        embed = nn.Embedding(len(TYPES), o["embedding"])
        weights = torch.arange(1.0, 6.0).reshape(1, -1)
        if o["trainable"]:
            weights = nn.Parameter(weights * (1 + 0.1 * torch.rand(1, 5)))
        recip = 1 / torch.tensor(o["pairs"] or o["r_max"]).reshape(-1 if o["pairs"] else ())
        members = {
            "type_embed": part(
                "NodeTypeEmbed", {"do_categorical_graph_field_embed": False}, embed_module=embed
            ),
            "spharm": part("SphericalHarmonicEdgeAttrs", {"irreps_edge_sh": sh}),
            "edge_norm": part("EdgeLengthNormalizer", {"r_max": o["r_max"]}, _rmax_recip=recip),
            "bessel_encode": part(
                "BesselEdgeLengthEncoding",
                {"trainable": o["trainable"]},
                bessel_weights=weights,
                cutoff=part("PolynomialCutoff", {"p": 6.0}),
            ),
            "factor": part("ApplyFactor", {"factor": 2 * math.pi / o["r_max"] ** 2}),
        }
        irreps = o3.Irreps([(o["embedding"], (0, 1))])
        norms = torch.tensor(o["neighbors"]).rsqrt().reshape(-1, 1)
        for k in range(o["layers"]):
            wanted = hidden if k + 1 < o["layers"] else o3.Irreps([(o["features"][0], (0, 1))])
            connected = k > 0 or o["first_connection"]
            layer, irreps = self.layer(irreps, sh, wanted, norms, connected)
            members[f"layer{k}_convnet"] = layer
        readout = perceptron([irreps.dim, *o["readout"], 1])
        members["per_atom_energy_readout"] = part("ScalarMLP", mlp_module=readout)
        scales, shifts = 0.5 + torch.rand(len(TYPES), 1), 10 * torch.randn(len(TYPES), 1)
        members["per_type_energy_scale_shift"] = part("PerTypeScaleShift", scales=scales, shifts=shifts)
        if o["zbl"]:
            half = torch.tensor(14.399645 / 2)
            cutoff = part("PolynomialCutoff", {"p": 6.0})
            numbers = torch.tensor(NUMBERS, dtype=torch.float64)
            members["pair_potential"] = part(
                "ZBL", cutoff=cutoff, _qqr2exesquare=half, atomic_numbers=numbers
            )
        members["total_energy_sum"] = part("AtomwiseReduce", {"reduce": "sum", "constant": 1.0})
        self.func = part("SequentialGraphNetwork", **members)
        model = part("ForceStressOutput", func=self.func)
        self.graph = part("GraphModel", {"type_names": TYPES}, model=model)

    def layer(self, irreps, sh, wanted, norms, connected):
        reachable = {ir for _, a in irreps for _, b in sh for ir in a * b}
        scalars = o3.Irreps([(m, ir) for m, ir in wanted if ir.l == 0 and ir in reachable])
        gated = o3.Irreps([(m, ir) for m, ir in wanted if ir.l > 0 and ir in reachable])
        gates = o3.Irreps([(m, (0, 1)) for m, _ in gated])
        acts = {1: self.o["act"], -1: torch.tanh}
        gate = Gate(scalars, [acts[ir.p] for _, ir in scalars], gates, [acts[1]] * len(gates), gated)
        out = gate.irreps_in.simplify()
        found = [
            (i, j, (mul, ir_out))
            for i, (mul, ir) in enumerate(irreps)
            for j, (_, ir_sh) in enumerate(sh)
            for ir_out in ir * ir_sh
            if ir_out in out
        ]
        mid, place, _ = o3.Irreps([block for _, _, block in found]).sort()
        instructions = [(i, j, place[k], "uvu", True) for k, (i, j, _) in enumerate(found)]
        product = o3.TensorProduct(
            irreps, sh, mid, instructions, shared_weights=False, internal_weights=False
        )
        attributes = o3.Irreps([(self.o["embedding"], (0, 1))])
        conv = part(
            "InteractionBlock",
            avg_num_neighbors_norm=part("AvgNumNeighborsNorm", norm_const=norms),
            linear_1=o3.Linear(irreps, irreps),
            tp_scatter=part("TensorProductScatter", tp=product),
            edge_mlp=perceptron([5, *self.o["radial"], product.weight_numel]),
            linear_2=o3.Linear(mid.simplify(), out),
        )
        if connected:
            conv.sc = o3.FullyConnectedTensorProduct(irreps, attributes, out)
        layer = part("ConvNetLayer", {"resnet": False}, equivariant_nonlin=gate, conv=conv)
        return layer, gate.irreps_out.simplify()

    def __call__(self, edge_vec, edge_index, types):
        func, o = self.func, self.o
        r = edge_vec.norm(dim=1, keepdim=True)
        recip = func.edge_norm._rmax_recip
        if recip.numel() > 1:
            recip = recip[types[edge_index[0]] * len(TYPES) + types[edge_index[1]]].unsqueeze(1)
        x = r * recip
        u = (1 - 28 * x**6 + 48 * x**7 - 21 * x**8) * (x < 1)
        w = func.bessel_encode.bessel_weights
        basis = func.factor.factor * torch.sinc(x * w) * w * u
        sh = o3.spherical_harmonics(func.spharm.irreps_edge_sh, edge_vec, True, normalization="component")
        attributes = features = func.type_embed.embed_module.weight[types]
        for k in range(o["layers"]):
            layer = func.get_submodule(f"layer{k}_convnet")
            conv = layer.conv
            kept = conv.sc(features, attributes) if hasattr(conv, "sc") else 0
            norms = conv.avg_num_neighbors_norm.norm_const
            sent = conv.linear_1(features) * (norms[types] if len(norms) > 1 else norms)
            messages = conv.tp_scatter.tp(sent[edge_index[1]], sh, apply(conv.edge_mlp, basis))
            total = torch.zeros(len(types), messages.shape[1]).index_add(0, edge_index[0], messages)
            features = layer.equivariant_nonlin(conv.linear_2(total) + kept)
        last = func.per_type_energy_scale_shift
        energy = apply(func.per_atom_energy_readout.mlp_module, features)[:, 0]
        energy = energy * last.scales[types, 0] + last.shifts[types, 0]
        if not o["zbl"]:
            return energy
        z = func.pair_potential.atomic_numbers[types]
        one, two = z[edge_index[0]], z[edge_index[1]]
        s = (one**0.23 + two**0.23) * r[:, 0] / 0.46850
        terms = ((0.02817, 0.20162), (0.28022, 0.40290), (0.50986, 0.94229), (0.18175, 3.19980))
        screening = sum(c * torch.exp(-d * s) for c, d in terms)
        pair = func.pair_potential._qqr2exesquare * one * two / r[:, 0] * screening * u[:, 0]
        return energy.index_add(0, edge_index[0], pair)


def in_double(function, *arguments, **options):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return function(*arguments, **options)
    finally:
        torch.set_default_dtype(before)


def make(**changes) -> PlainNequIP:
    torch.manual_seed(0)
    return in_double(PlainNequIP, **changes)


def evaluate(model: PlainNequIP, edge_vec, edge_index, types):
    """Atomic energies, and the gradient of their sum by the edges."""
    edge_vec = edge_vec.clone().requires_grad_()
    energies = in_double(model, edge_vec, edge_index, types)
    return energies.detach(), torch.autograd.grad(energies.sum(), edge_vec)[0]
