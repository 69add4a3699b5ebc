"""NequIP's models (https://github.com/mir-group/nequip, 0.19 and newer) as NequIP models of equipot.

An interpreter with nequip has read the file (nequip_dump.py): arrays, and modules with their attributes.
Irreps and paths are those of e3nn's modules; what differs and is accounted for here: the order of irreps, of
radial weights and of gates; constants of nonlinearities; self-connections are products with the embedding.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from ase.data import atomic_numbers
from e3nn import o3
from torch import Tensor

from equipot.errors import ModelFileError
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
# Attributes of modules that equipot has with one value only, by class.
_ONLY: dict[str, dict[str, Any]] = {
    "NodeTypeEmbed": {"do_categorical_graph_field_embed": False},
    "SphericalHarmonics": {"normalize": True, "normalization": "component"},
    "ConvNetLayer": {"resnet": False},
    "AtomwiseReduce": {"reduce": "sum", "constant": 1.0},
    "ScalarMLPFunction": {"bias": False},
}
_LAMMPS_COULOMB = 14.399645  # eV Å


class Dump:
    """A model of another code as data: arrays by name, and of each module its class and attributes."""

    def __init__(self, path: Path, file: Any):
        with np.load(file, allow_pickle=False) as found:
            facts = json.loads(str(found["facts"]))
            arrays = {name: torch.from_numpy(found[name]) for name in found.files if name != "facts"}
        self.path = path
        self.versions: dict[str, str] = facts["versions"]
        self.modules: dict[str, dict[str, Any]] = facts["modules"]
        self.arrays = {name: a.double() if a.is_floating_point() else a for name, a in arrays.items()}

    def children(self, prefix: str) -> dict[str, str]:
        """Name and class of the modules right below one."""
        depth = prefix.count(".") + 1
        below = [n for n in self.modules if n.startswith(f"{prefix}.") and n.count(".") == depth]
        return {name.rpartition(".")[2]: self.modules[name]["class"] for name in below}

    def refuse(self, found: str, known: str) -> NoReturn:
        """Raises ModelFileError."""
        raise ModelFileError(
            f"{self.path}: this checkpoint uses {found}, which equipot does not have ({known})."
        )

    def require_only(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        """Raises ModelFileError for a module of a class with another value of an attribute."""
        for name, module in self.modules.items():
            for key, value in values.get(module["class"], {}).items():
                if module.get(key, value) != value:
                    self.refuse(f"{module['class']} ({name}) with {key} {module[key]}", f"only {value}")

    def perceptron(self, name: str) -> list[Tensor]:
        """The scaled matrices of a ScalarMLPFunction, with SiLU between them."""
        children = self.children(f"{name}.mlp")
        if self.modules[f"{name}.mlp"]["class"] == "DeepLinearMLP":  # no nonlinearities: one map
            weights = [self.arrays[key] for key in self.arrays if key.startswith(f"{name}.mlp.weights.")]
            return [torch.linalg.multi_dot(weights) * self.arrays[f"{name}.mlp.alpha"]]
        matrices = []
        for number, kind in children.items():
            expected = "SiLU" if int(number) % 2 else "ScalarLinearLayer"
            if kind != expected:
                self.refuse(f"{kind} in {name}", f"only {expected} there")
            if kind == "ScalarLinearLayer":
                place = f"{name}.mlp.{number}"
                matrices.append(self.arrays[f"{place}.weight"] * self.arrays[f"{place}.alpha"])
        return matrices

    def linear(self, name: str) -> dict[o3.Irrep, Tensor]:
        """Of e3nn's Linear a matrix (channels in, channels out) for each irrep, scaled."""
        module, weight = self.modules[name], self.arrays[f"{name}.weight"]
        blocks_in, blocks_out = o3.Irreps(module["irreps_in"]), o3.Irreps(module["irreps_out"])
        found = {ir: weight.new_zeros(blocks_in.count(ir), blocks_out.count(ir)) for _, ir in blocks_in}
        at = 0
        for i, o, shape, scale in module["instructions"]:
            ir, size = blocks_in[i].ir, math.prod(shape)
            found[ir][_rows(blocks_in, i), _rows(blocks_out, o)] = weight[at : at + size].view(shape) * scale
            at += size
        return found

    def connection(self, name: str, attributes: Tensor) -> dict[o3.Irrep, Tensor]:
        """Of e3nn's FullyConnectedTensorProduct with scalar ``attributes`` (species, width) of each species:
        (species, channels in, channels out) for each irrep, scaled."""
        module, weight = self.modules[name], self.arrays[f"{name}.weight"]
        blocks_in, blocks_out = o3.Irreps(module["irreps_in1"]), o3.Irreps(module["irreps_out"])
        count, at = len(attributes), 0
        found = {
            ir: weight.new_zeros(count, blocks_in.count(ir), blocks_out.count(ir)) for _, ir in blocks_in
        }
        for i, _, o, _, _, scale, shape in module["instructions"]:
            ir, size = blocks_in[i].ir, math.prod(shape)
            product = torch.einsum("cfd,sf->scd", weight[at : at + size].view(shape), attributes)
            # Products with a scalar carry 1/√(2l+1).
            product = product * (scale / ir.dim**0.5)
            found[ir][:, _rows(blocks_in, i), _rows(blocks_out, o)] = product
            at += size
        return found


def _rows(irreps: o3.Irreps, block: int) -> slice:
    """The channels of a block among those of its irrep."""
    mul, ir = irreps[block]
    first = sum(m for m, other in irreps[:block] if other == ir)
    return slice(first, first + mul)


class NequIPModel:
    """A dumped model, checked: what equipot can express of it, and nothing else.

    Raises:
        ModelFileError: names what the model uses and equipot does not have.
    """

    def __init__(self, dump: Dump):
        self.dump, self.path = dump, dump.path
        self.levels: list[str] = []
        self.func = "model.func"
        try:
            self._read()
        except KeyError as error:
            raise ModelFileError(f"{self.path}: NequIP's model lacks {error}.") from None

    def _read(self) -> None:
        dump, func = self.dump, self.func
        self.layers = self._require_known_modules()
        names = dump.modules[""]["type_names"]
        unknown = [name for name in names if name not in atomic_numbers]
        if unknown:
            dump.refuse(f"types of atoms that are no elements, {unknown[0]}", "only chemical symbols")
        self.species = sorted(names, key=lambda name: atomic_numbers[name])
        self.rows = [names.index(symbol) for symbol in self.species]
        self.cutoff = float(dump.modules[f"{func}.edge_norm"]["r_max"])
        self.harmonics = o3.Irreps(dump.modules[f"{func}.spharm"]["irreps_edge_sh"])
        self.l_max = self.harmonics.lmax
        if self.harmonics != o3.Irreps.spherical_harmonics(self.l_max) or self.l_max > 4:
            dump.refuse(f"harmonics {self.harmonics}", "all up to l = 4 at most, with the parity of vectors")
        self.frequencies = math.pi * dump.arrays[f"{func}.bessel_encode.bessel_weights"].reshape(-1)
        norms = dump.arrays[f"{self._layer_name(0)}.conv.avg_num_neighbors_norm.norm_const"].reshape(-1)
        self.norms = norms[self.rows] if len(norms) > 1 else norms  # of the sender
        self.denominator = max(1.0, float(norms.pow(-2).mean())) ** 0.5
        self.irreps = self._irreps_of_layers()
        self.radial = [dump.perceptron(f"{self._layer_name(k)}.conv.edge_mlp") for k in range(self.layers)]
        self.readout = dump.perceptron(f"{func}.per_atom_energy_readout.mlp_module")
        widths = {tuple(len(matrix) for matrix in of_layer[1:]) for of_layer in self.radial}
        if len(widths) > 1 or () in widths:
            dump.refuse(
                f"radial networks of the hidden widths {sorted(widths)}", "hidden layers, alike in all"
            )
        self._zbl()

    def _layer_name(self, number: int) -> str:
        return f"{self.func}.layer{number}_convnet"

    def _require_known_modules(self) -> int:
        """The number of layers."""
        dump = self.dump
        if (kind := dump.modules["model"]["class"]) != "ForceStressOutput":
            dump.refuse(f"the model {kind}", "energies and their derivatives")
        found = dump.children(self.func)
        if "allegro" in found:
            dump.refuse(
                "Allegro with products of radial functions and embeddings, and scalars of layers in a row",
                "its Allegro puts elements beside radial functions, and adds up the scalars of layers",
            )
        layers = sum(kind == "ConvNetLayer" for kind in found.values())
        known = _BEFORE | {f"layer{k}_convnet": "ConvNetLayer" for k in range(layers)} | _AFTER
        for name, kind in found.items():
            if known.get(name) != kind:
                dump.refuse(f"{kind} ({name})", f"only {known.get(name, 'the modules of NequIPGNNModel')}")
        missing = [name for name in known if name not in found and name != "pair_potential"]
        if missing:
            raise KeyError(missing[0])
        dump.require_only(_ONLY)
        for k in range(layers):
            kind = dump.modules[f"{self._layer_name(k)}.equivariant_nonlin"]["class"]
            if kind != "Gate":
                dump.refuse(f"the nonlinearity {kind}", "only Gate")
        for name, module in dump.modules.items():
            if module["class"] != "normalize2mom":
                continue
            if module["f"] != ("tanh" if self._is_odd(name) else "silu"):
                dump.refuse(f"the activation {module['f']} ({name})", "silu, and tanh of pseudoscalars")
        return layers

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
            by_degree = {ir.l: mul for mul, ir in found}
            repeated = len({ir for _, ir in found}) < len(found)
            if repeated or any(by_degree[ir.l] != mul for mul, ir in found):
                dump.refuse(f"irreps {found}", "one number of channels for each l")
            if sorted(by_degree) != list(range(len(by_degree))) or max(by_degree) > self.l_max:
                dump.refuse(
                    f"irreps {found}", f"every l up to some l, at most that of the harmonics, {self.l_max}"
                )
            irreps.append(found)
        return irreps

    def _zbl(self) -> bool:
        """Whether there is repulsion."""
        dump, name = self.dump, f"{self.func}.pair_potential"
        if name not in dump.modules:
            return False
        power, coulomb = dump.modules[f"{name}.cutoff"]["p"], 2 * float(dump.arrays[f"{name}._qqr2exesquare"])
        if power != 6 or abs(coulomb / _LAMMPS_COULOMB - 1) > 1e-12:
            dump.refuse(f"ZBL with polynomial_cutoff_p {power} and e² = {coulomb:g}", "6, units metal")
        numbers = dump.arrays[f"{name}.atomic_numbers"].tolist()
        if [numbers[row] for row in self.rows] != [atomic_numbers[symbol] for symbol in self.species]:
            dump.refuse("ZBL of other elements than the types' names", "those of the atoms")
        return True

    def _pair_cutoffs(self) -> dict[str, float] | None:
        """As the key ``pair_cutoffs``; those that are the cutoff are left out."""
        count, inverse = len(self.rows), self.dump.arrays[f"{self.func}.edge_norm._rmax_recip"]
        if inverse.numel() == 1:
            return None
        table = (1 / inverse.view(count, count))[self.rows][:, self.rows].tolist()
        return {
            f"{one}-{other}": min(table[i][j], self.cutoff)
            for i, one in enumerate(self.species)
            for j, other in enumerate(self.species)
            if (j >= i or table[i][j] != table[j][i])
            and min(table[i][j], table[j][i]) < self.cutoff * (1 - 1e-12)
        }

    def model_config(self) -> dict[str, Any]:
        """The section ``model`` that gives a network of this architecture."""
        dump, func = self.dump, self.func
        channels = [
            [next(m for m, ir in irreps if ir.l == d) for d in range(irreps.lmax + 1)]
            for irreps in self.irreps
        ]
        power = dump.modules[f"{func}.bessel_encode.cutoff"]["p"]
        if power != int(power):
            dump.refuse(f"polynomial_cutoff_p {power}", "whole numbers")
        count = len(self.frequencies)
        fixed = torch.equal(self.frequencies, math.pi * torch.arange(1, count + 1, dtype=torch.float64))
        natural = all(ir.p == (-1) ** ir.l for irreps in self.irreps for _, ir in irreps)
        with_first = f"{self._layer_name(0)}.conv.sc" in dump.modules
        if any(f"{self._layer_name(k)}.conv.sc" not in dump.modules for k in range(1, self.layers)):
            dump.refuse("layers without self-connections", "only the first")
        return {
            "type": "nequip",
            "cutoff": self.cutoff,
            "l_max": self.l_max,
            "parity": not natural,
            "layers": self.layers,
            "layer_channels": channels,
            "embedding_channels": dump.arrays[f"{func}.type_embed.embed_module.weight"].shape[1],
            "num_bessel": count,
            "trainable_bessel": not fixed or bool(dump.modules[f"{func}.bessel_encode"]["trainable"]),
            "polynomial_cutoff": int(power),
            "pair_cutoffs": self._pair_cutoffs(),
            "first_self_connection": with_first,
            "element_factors": len(self.norms) > 1,
            "radial_hidden": [len(matrix) for matrix in self.radial[0][1:]],
            "radial_intervals": None,
            "readout_hidden": [len(matrix) for matrix in self.readout[1:]],
            "zbl": "cutoff" if self._zbl() else False,
            "scale": float(self._of_species("scales", 1.0).mean()) or 1.0,
        }

    def _of_species(self, name: str, otherwise: float) -> Tensor:
        """(T,) scales or shifts, eV, in the order of ``species``."""
        values = self.dump.arrays[f"{self.func}.per_type_energy_scale_shift.{name}"].reshape(-1)
        if len(values) < 2:
            one = float(values) if len(values) else otherwise
            return torch.full((len(self.rows),), one, dtype=torch.float64)
        return values[self.rows]

    def state(self, network: NequIP) -> State:
        """The state dict of a Potential with such a network."""
        embedding = self.dump.arrays[f"{self.func}.type_embed.embed_module.weight"][self.rows]
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
            for k, matrix in enumerate(_of_mlp([first, *self.readout[1:]])):
                state[f"network.readout.layers.{k}.weight"] = matrix
        state["scale_shift.scale"] = self._of_species("scales", 1.0)
        state["scale_shift.shift"] = self._of_species("shifts", 0.0)
        return state

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
        factor = self.dump.modules[f"{self.func}.factor"]["factor"] / (0.2 * math.pi)
        matrices = _of_mlp([self.radial[number][0] * factor, *self.radial[number][1:]])
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
            rows = _rows(out, item[2]) if of_output else slice(at, at + size)
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
        """Of the coupling coefficients with which the weights were trained: e3nn has changed some."""
        degrees = (key[0].l, key[1], key[2].l)
        name = f"{self._layer_name(number)}.conv.tp_scatter.tp._compiled_main_left_right._w3j_"
        stored = self.dump.arrays.get(name + "_".join(map(str, degrees)))
        if stored is None:  # e3nn writes products with l = 0 without them
            return 1.0
        right = o3.wigner_3j(*degrees, dtype=torch.float64)
        for sign in (1.0, -1.0):
            if torch.allclose(stored, sign * right, atol=1e-6):
                return sign
        raise ModelFileError(f"{self.path}: its coupling coefficients of degrees {degrees} are not e3nn's.")


def _of_mlp(matrices: Iterable[Tensor]) -> list[Tensor]:
    """Weights of `nn.mlp.MLP`, which scales them."""
    return [
        matrix * (len(matrix) ** 0.5 / (SILU_FACTOR if k > 0 else 1.0)) for k, matrix in enumerate(matrices)
    ]
