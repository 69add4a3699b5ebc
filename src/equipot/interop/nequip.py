"""NequIP's models (https://github.com/mir-group/nequip, 0.19 and newer) as NequIP models of equipot.

An interpreter with nequip has read the file (nequip_dump.py): arrays, and modules with their attributes.
Irreps and paths are those of e3nn's modules; what differs and is accounted for here: the order of irreps, of
radial weights and of gates; constants of nonlinearities; self-connections are products with the embedding.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from e3nn import o3
from torch import Tensor

from equipot.interop import layout
from equipot.interop.dump import FUNC, DumpedModel, of_mlp, rows_of_block
from equipot.interop.layout import SCALAR, Gate, paths_of, position
from equipot.models.nequip import NequIP, NequIPLayer
from equipot.models.network import State
from equipot.nn.mlp import SILU_FACTOR, TANH_FACTOR

# The modules of a model, in their order: name (layers are numbered) and the class that equipot knows.
_BEFORE = {
    "type_embed": "NodeTypeEmbed",
    "spharm": "SphericalHarmonicEdgeAttrs",
    "edge_norm": "EdgeLengthNormalizer",
    "bessel_encode": "BesselEdgeLengthEncoding",
    "factor": "ApplyFactor",
}
_AFTER = {
    "per_atom_energy_readout": "ScalarMLP",
    "per_type_energy_scale_shift": "PerTypeScaleShift",
    "pair_potential": "ZBL",
    "total_energy_sum": "AtomwiseReduce",
}


class NequIPModel(DumpedModel):
    """A model of NequIPGNNModel, of its presets, or of FullNequIPGNNModel."""

    bessel = f"{FUNC}.bessel_encode"
    only: ClassVar = {
        "NodeTypeEmbed": {"do_categorical_graph_field_embed": False},
        "SphericalHarmonics": {"normalize": True, "normalization": "component"},
        "ConvNetLayer": {"resnet": False},
        "AtomwiseReduce": {"reduce": "sum", "constant": 1.0},
        "ScalarMLPFunction": {"bias": False},
    }

    def _known(self, found: Mapping[str, str]) -> dict[str, str]:
        self.layers = sum(kind == "ConvNetLayer" for kind in found.values())
        return _BEFORE | {f"layer{k}_convnet": "ConvNetLayer" for k in range(self.layers)} | _AFTER

    def _read(self) -> None:
        dump = self.dump
        self._require_gates()
        self._require_harmonics(dump.modules[f"{FUNC}.spharm"]["irreps_edge_sh"])
        norms = dump.arrays[f"{self._layer_name(0)}.conv.avg_num_neighbors_norm.norm_const"].reshape(-1)
        self.norms = norms[self.rows] if len(norms) > 1 else norms  # of the sender
        self.denominator = max(1.0, float(norms.pow(-2).mean())) ** 0.5
        self.irreps = self._irreps_of_layers()
        self.radial = [dump.perceptron(f"{self._layer_name(k)}.conv.edge_mlp") for k in range(self.layers)]
        self.readout = dump.perceptron(f"{FUNC}.per_atom_energy_readout.mlp_module")
        widths = {tuple(len(matrix) for matrix in of_layer[1:]) for of_layer in self.radial}
        if len(widths) > 1 or () in widths:
            dump.refuse(f"radial networks of hidden widths {sorted(widths)}", "hidden layers, alike in all")

    def _layer_name(self, number: int) -> str:
        return f"{FUNC}.layer{number}_convnet"

    def _require_gates(self) -> None:
        dump = self.dump
        for k in range(self.layers):
            kind = dump.modules[f"{self._layer_name(k)}.equivariant_nonlin"]["class"]
            if kind != "Gate":
                dump.refuse(f"the nonlinearity {kind}", "only Gate")
        for name, module in dump.modules.items():
            if module["class"] != "normalize2mom":
                continue
            if module["f"] != ("tanh" if self._is_odd(name) else "silu"):
                dump.refuse(f"the activation {module['f']} ({name})", "silu, and tanh of pseudoscalars")

    def _is_odd(self, name: str) -> bool:
        """Whether an activation is that of pseudoscalars."""
        activation, _, number = name.rpartition(".acts.")
        return o3.Irreps(self.dump.modules[activation]["irreps_in"])[int(number)].ir.p < 0

    def _irreps_of_layers(self) -> list[o3.Irreps]:
        """What leaves each layer; checked against what equipot's layers can be."""
        dump, irreps = self.dump, []
        for k in range(self.layers):
            gate = dump.modules[f"{self._layer_name(k)}.equivariant_nonlin"]
            found = (o3.Irreps(gate["irreps_scalars"]) + o3.Irreps(gate["irreps_gated"])).simplify()
            layout.require_layer(self.path, found, self.l_max)
            irreps.append(found)
        return irreps

    def model_config(self) -> dict[str, Any]:
        """The section ``model`` that gives a network of this architecture."""
        dump = self.dump
        connected = [f"{self._layer_name(k)}.conv.sc" in dump.modules for k in range(self.layers)]
        if not all(connected[1:]):
            dump.refuse("layers without self-connections", "only the first")
        return self._common_config() | {
            "type": "nequip",
            "parity": not layout.have_parity_of_harmonics(self.irreps),
            "layers": self.layers,
            "layer_channels": list(map(layout.channels_of, self.irreps)),
            "embedding_channels": dump.arrays[f"{FUNC}.type_embed.embed_module.weight"].shape[1],
            "trainable_bessel": self.trainable_bessel,
            "first_self_connection": connected[0],
            "element_factors": len(self.norms) > 1,
            "radial_hidden": [len(matrix) for matrix in self.radial[0][1:]],
            "radial_intervals": None,
            "readout_hidden": [len(matrix) for matrix in self.readout[1:]],
        }

    def state(self, network: NequIP) -> State:
        """The state dict of a Potential with such a network."""
        embedding = self.dump.arrays[f"{FUNC}.type_embed.embed_module.weight"][self.rows]
        state = {"network.embedding": embedding}
        factors = {SCALAR: 1.0}
        for number, layer in enumerate(network.layers):
            of_layer = self._layer(number, layer, embedding, factors)
            state |= {f"network.layers.{number}.{name}": weight for name, weight in of_layer.items()}
            factors = self._constants(number, layer)
        first = self.readout[0] * factors[SCALAR]
        if len(self.readout) == 1:
            state["network.readout.weights.0"] = first * len(first) ** 0.5
        else:
            for k, matrix in enumerate(of_mlp([first, *self.readout[1:]])):
                state[f"network.readout.layers.{k}.weight"] = matrix
        return state | self._scale_shift()

    def _constants(self, number: int, layer: NequIPLayer) -> dict[o3.Irrep, float]:
        """What features are to be multiplied with: e3nn's constants of nonlinearities are estimates."""
        gate = f"{self._layer_name(number)}.equivariant_nonlin"
        modules = self.dump.modules
        silu = tanh = 1.0
        for name in (f"{gate}.act_scalars.acts", f"{gate}.act_gates.acts"):
            for k in self.dump.children(name):
                if modules[f"{name}.{k}"]["f"] == "tanh":
                    tanh = modules[f"{name}.{k}"]["cst"] / TANH_FACTOR
                else:
                    silu = modules[f"{name}.{k}"]["cst"] / SILU_FACTOR
        return {ir: tanh if (ir.l, ir.p) == (0, -1) else silu for _, ir in layer.irreps_out}

    def _layer(
        self, number: int, layer: NequIPLayer, embedding: Tensor, factors: Mapping[o3.Irrep, float]
    ) -> State:
        """Weights of one layer; ``factors``: what its input is to be multiplied with."""
        dump, conv = self.dump, f"{self._layer_name(number)}.conv"
        gate, state = Gate(self.irreps[number]), {}
        self._require_same_paths(number, layer)
        first = dump.linear(f"{conv}.linear_1")
        norms = self.norms * self.denominator
        shared = float(norms) if len(norms) == 1 else 1.0
        for k, (mul, ir) in enumerate(layer.irreps_in):
            state[f"mix_channels.weights.{k}"] = first[ir] * (shared * factors[ir] * mul**0.5)
        if layer.factors is not None:
            state["factors"] = norms
        mixing, rows = dump.linear(f"{conv}.linear_2"), self._places(number, of_output=True)
        for mul, ir in layer.mix_paths.irreps_in:
            found = [index for key in paths_of(layer) if key[2] == ir for index in rows[key]]
            weight = mixing[ir][found][:, gate.columns(ir, layer)]
            state[f"mix_paths.weights.{position(layer.gate.irreps_in, ir)}"] = weight * mul**0.5
        state |= {f"convolution.radial.{key}": w for key, w in self._radial(number, layer).items()}
        if layer.connected:
            kept = dump.connection(f"{conv}.sc", embedding)
            for k, (_, ir) in enumerate(layer.gate.irreps_in):
                if ir in layer.irreps_in:
                    factor = factors[ir] * layer.irreps_in.count(ir) ** 0.5
                    state[f"self_connection.blocks.{k}.weight"] = (
                        kept[ir][:, :, gate.columns(ir, layer)] * factor
                    )
        return state

    def _radial(self, number: int, layer: NequIPLayer) -> State:
        """The perceptron of the distance, its last columns in the order of the layer's paths."""
        # factor · w sinc(w x) = factor sin(π w x) / (π x), and equipot's basis is 0.2 sin(f x) / x.
        factor = self.dump.modules[f"{FUNC}.factor"]["factor"] / (0.2 * math.pi)
        matrices = of_mlp([self.radial[number][0] * factor, *self.radial[number][1:]])
        places, product = self._places(number, of_output=False), self._product(number)
        scales = {self._key(product, item): item[5] for item in product["instructions"]}
        columns, scale = [], []
        for key in paths_of(layer):
            columns += places[key]
            one = scales[key] / key[2].dim ** 0.5 * self._sign(number, key)
            scale += [one] * len(places[key])
        last = matrices[-1][:, columns] * torch.tensor(scale, dtype=torch.float64)
        state = {f"network.hidden.layers.{k}.weight": weight for k, weight in enumerate(matrices[:-1])}
        state["network.linear.weight"] = last
        if "frequencies" in dict(layer.convolution.radial.basis.named_parameters()):
            state["basis.frequencies"] = self.frequencies
        return state

    def _product(self, number: int) -> dict[str, Any]:
        return self.dump.modules[f"{self._layer_name(number)}.conv.tp_scatter.tp"]

    def _key(self, product: Mapping[str, Any], item: list) -> tuple[o3.Irrep, int, o3.Irrep]:
        """Input irrep, degree of the harmonic and output irrep of a path, as `paths_of`."""
        one, two, out = (o3.Irreps(product[name]) for name in ("irreps_in1", "irreps_in2", "irreps_out"))
        return one[item[0]].ir, two[item[1]].ir.l, out[item[2]].ir

    def _places(self, number: int, of_output: bool) -> dict[tuple, list[int]]:
        """Of each path its channels among those of its output irrep, or its radial weights."""
        product, at, places = self._product(number), 0, {}
        out = o3.Irreps(product["irreps_out"])
        for item in product["instructions"]:
            size = math.prod(item[6])
            rows = rows_of_block(out, item[2]) if of_output else slice(at, at + size)
            places[self._key(product, item)] = list(range(rows.start, rows.stop))
            at += size
        return places

    def _require_same_paths(self, number: int, layer: NequIPLayer) -> None:
        """Beyond those into irreps that lead nowhere, which equipot's layers do not have."""
        kept_in, kept_out = ({ir for _, ir in block} for block in (layer.irreps_in, layer.gate.irreps_in))
        theirs = {key for key in self._places(number, True) if key[0] in kept_in and key[2] in kept_out}
        if theirs != set(paths_of(layer)) or any(
            self.irreps[number].count(ir) != mul for mul, ir in layer.irreps_out
        ):
            self.dump.refuse(f"other paths in layer {number} than NequIPGNNModel", "all that irreps allow")

    def _sign(self, number: int, key: tuple[o3.Irrep, int, o3.Irrep]) -> float:
        """As `sign_of`."""
        degrees = (key[0].l, key[1], key[2].l)
        name = f"{self._layer_name(number)}.conv.tp_scatter.tp._compiled_main_left_right._w3j_"
        stored = self.dump.arrays.get(name + "_".join(map(str, degrees)))
        # e3nn writes products with l = 0 without them.
        return 1.0 if stored is None else layout.sign_of(self.path, stored, degrees)
