"""SevenNet's checkpoints as NequIP models of equipot.

SevenNet (Y. Park et al., J. Chem. Theory Comput. 20, 4857 (2024), https://doi.org/10.1021/acs.jctc.4c00190;
levels of theory: J. Kim et al., J. Am. Chem. Soc. (2024), https://doi.org/10.1021/jacs.4c14455) builds NequIP
of e3nn's modules. What differs and is accounted for here: the order of irreps, of radial weights and of
gates; the constants of nonlinearities; a one-hot vector of the level of theory beside the input of linear
maps, which is a bias by level for each of them.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from ase.data import atomic_numbers, chemical_symbols
from e3nn import o3
from e3nn.math import normalize2mom
from torch import Tensor

from equipot.errors import ModelFileError
from equipot.interop import layout
from equipot.interop.layout import SCALAR, Gate, Paths, paths_of, position
from equipot.models.nequip import NequIP, NequIPLayer
from equipot.models.network import State
from equipot.nn.mlp import SILU_FACTOR, TANH_FACTOR

_OLD_NAMES = {
    "EdgeEmbedding": "edge_embedding",
    "reducing nn input to hidden": "reduce_input_to_hidden",
    "reducing nn hidden to energy": "reduce_hidden_to_energy",
    "denumerator": "denominator",
}
# The only values that equipot has, of settings that a checkpoint may have or lack.
_ONLY = {
    "interaction_type": ("nequip",),
    "act_radial": ("silu",),
    "act_scalar": ({"e": "silu", "o": "tanh"},),
    "act_gate": ({"e": "silu", "o": "tanh"},),
    "optimize_by_reduce": (True,),
}


class SevenNet:
    """The content of a checkpoint, checked: what equipot can express of it, and nothing else.

    ``level``: the level of theory to take, of a model of several; None: all, which are ``levels``.

    Raises:
        ModelFileError: names what the checkpoint lacks, or uses and equipot does not have.
    """

    def __init__(self, path: Any, content: Mapping[str, Any], level: str | None):
        self.path = path
        config = content.get("config")
        if not isinstance(config, dict) or "model_state_dict" not in content:
            if "equipot" in content:
                raise ModelFileError(f"{path}: this is a checkpoint of equipot already: use it as it is.")
            raise ModelFileError(
                f"{path}: a PyTorch file, but no SevenNet checkpoint: expected 'config' and "
                f"'model_state_dict', found {', '.join(map(str, list(content)[:5])) or 'nothing'}."
            )
        self.config: dict[str, Any] = config
        with layout.readable(path):
            self._read(content["model_state_dict"], level)

    def _read(self, state: Mapping[str, Tensor], level: str | None) -> None:
        config = self.config
        self._require_only_what_equipot_has()
        self.weights = {_new_name(name): weight.double() for name, weight in state.items()}
        broken = [name for name, weight in self.weights.items() if not weight.isfinite().all()]
        if broken:
            raise ModelFileError(f"{self.path}: there are numbers that are not finite in '{broken[0]}'.")
        self.species = [chemical_symbols[z] for z in sorted(config["_type_map"])]
        self.rows = [config["_type_map"][atomic_numbers[symbol]] for symbol in self.species]
        self.cutoff = float(config["cutoff"])
        self.layers = sum(name.endswith("_convolution.denominator") for name in self.weights)
        self.parity = bool(config["is_parity"])
        degree = config.get("lmax_edge", -1)
        self.l_max = degree if degree > 0 else config["lmax"]
        self.harmonics = o3.Irreps.spherical_harmonics(self.l_max, -1 if self.parity else 1)
        self.irreps = self._irreps_of_layers()
        self.modals: dict[str, int] = config.get("_modal_map") or {}
        self.levels = self._chosen_levels(level)
        self.modal_rows = [self.modals[name] for name in self.levels]
        count = config["radial_basis"].get("bessel_basis_num", 8)
        fixed = math.pi / self.cutoff * torch.arange(1, count + 1, dtype=torch.float64)
        self.frequencies = self.weights.get("edge_embedding.basis_function.coeffs", fixed)  # c of sin(c r)
        self.denominator = float(self.weights["0_convolution.denominator"])

    def _require_only_what_equipot_has(self) -> None:
        config = self.config
        for key, known in _ONLY.items():
            if config.get(key, known[0]) not in known:
                self._refuse(f"{key}: {config[key]}", f"only {known[0]}")
        activation = config.get("readout_fcn_activation", "relu")
        if config.get("readout_as_fcn") and activation != "silu":
            self._refuse(f"readout_fcn_activation: {activation}", "only silu")
        if (config.get("cuequivariance_config") or {}).get("use"):
            self._refuse("cuequivariance_config: weights in the order of cuEquivariance", "only e3nn's")
        basis, envelope = config["radial_basis"], config["cutoff_function"]
        if basis["radial_basis_name"] != "bessel":
            self._refuse(f"radial_basis: {basis['radial_basis_name']}", "only bessel")
        if envelope["cutoff_function_name"] not in ("poly_cut", "XPLOR"):
            self._refuse(f"cutoff_function: {envelope['cutoff_function_name']}", "poly_cut and XPLOR")
        kinds = config.get("self_connection_type", "nequip")
        kinds = {kinds} if isinstance(kinds, str) else set(kinds)
        if len(kinds) > 1 or not kinds <= {"nequip", "linear"}:
            self._refuse(
                f"self_connection_type: {config['self_connection_type']}", "linear or nequip, for all"
            )
        self.shared = kinds == {"linear"}

    def _refuse(self, found: str, known: str) -> None:
        layout.refuse(self.path, found, known)

    def _chosen_levels(self, level: str | None) -> list[str]:
        """Names of the levels to take; none: the model has one, without a name."""
        if blank := [name for name in self.modals if len(name.split()) != 1]:
            self._refuse(f"'{blank[0]}' as the name of a level of theory", "names without blanks")
        if level is None:
            return list(self.modals)
        if not self.modals:
            raise ModelFileError(
                f"{self.path}: it has one level of theory without a name: leave --level out."
            )
        if level not in self.modals:
            names = ", ".join(self.modals)
            raise ModelFileError(f"{self.path}: it has no level '{level}'. Its levels are: {names}.")
        return [level]

    def _irreps_of_layers(self) -> list[o3.Irreps]:
        """What enters the first layer, and what leaves each; checked against what equipot's layers can be."""
        config = self.config
        if config.get("irreps_manual"):
            irreps = [o3.Irreps(text) for text in config["irreps_manual"]]
        else:
            irreps = [o3.Irreps([(config["channel"], (0, 1))])]
            node = config.get("lmax_node", -1)
            degree = node if node > 0 else config["lmax"]
            for layer in range(self.layers):
                last = layer + 1 == self.layers
                found = sorted({ir for _, a in irreps[-1] for _, b in self.harmonics for ir in a * b})
                kept = [ir for ir in found if ir.l <= (0 if last else degree) and not (last and ir.p < 0)]
                irreps.append(o3.Irreps([(config["channel"], ir) for ir in kept]))
        for of_layer in irreps:
            layout.require_layer(self.path, of_layer, self.l_max)
        if len(irreps) != self.layers + 1 or irreps[0].lmax > 0 or irreps[-1].lmax > 0:
            self._refuse(
                f"irreps {[str(i) for i in irreps]}", "scalars before the first layer and after the last"
            )
        return irreps

    def model_config(self) -> dict[str, Any]:
        """The section ``model`` that gives a network of this architecture."""
        config, envelope = self.config, self.config["cutoff_function"]
        is_xplor = envelope["cutoff_function_name"] == "XPLOR"
        radial = [int(width) for width in config["weight_nn_hidden_neurons"]]
        channels = list(map(layout.channels_of, self.irreps))
        return {
            "type": "nequip",
            "cutoff": self.cutoff,
            "l_max": self.l_max,
            "parity": "ignored" if not self.parity else not layout.have_parity_of_harmonics(self.irreps),
            "layers": self.layers,
            "layer_channels": channels[1:],
            "embedding_channels": channels[0][0],
            "num_bessel": len(self.frequencies),
            "trainable_bessel": True,
            "polynomial_cutoff": envelope.get("poly_cut_p_value", 6),
            "xplor_start": float(envelope["cutoff_on"]) if is_xplor else None,
            "normalize_harmonics": bool(config.get("_normalize_sph", not self._is_before("0.10.0"))),
            "self_connection": "shared" if self.shared else "by_element",
            "biases": bool(self.levels or config.get("use_bias_in_linear")),
            "radial_hidden": radial,
            "readout_hidden": self._readout_hidden(),
            "radial_intervals": None,
            "scale": float(self._of_species("scale").mean()),
        }

    def _of_species(self, name: str) -> Tensor:
        """(K, T) scale or shift, eV, of each level (at least one) and element."""
        values = self.weights[f"rescale_atomic_energy.{name}"]
        if values.shape[-1] not in (1, len(self.rows)):
            raise ValueError(f"{name} has {values.shape[-1]} numbers for {len(self.rows)} elements")
        values = values[self.modal_rows] if values.ndim == 2 else values.expand(max(len(self.levels), 1), -1)
        return values.expand(-1, len(self.rows)) if values.shape[1] == 1 else values[:, self.rows]

    def state(self, network: NequIP) -> State:
        """The state dict of a Potential with such a network; use it within `readable`."""
        state = {}
        embedding, constants = self._linear(
            "onehot_to_feature_x", o3.Irreps(f"{len(self.rows)}x0e"), self.irreps[0]
        )
        state["network.embedding"] = embedding[SCALAR][self.rows] + constants[0]
        factors = {SCALAR: 1.0}
        for number, layer in enumerate(network.layers):
            lacking = [str(ir) for _, ir in layer.irreps_out if ir not in self.irreps[number + 1]]
            if lacking:
                its = f"its layer would also have {', '.join(lacking)}, since that contributes"
                self._refuse(f"irreps {self.irreps[number + 1]}", its)
            of_layer = self._layer(number, layer, factors)
            state |= {f"network.layers.{number}.{name}": weight for name, weight in of_layer.items()}
            # Activations are scaled to unit variance with constants of e3nn's that are estimates.
            silu = normalize2mom(torch.nn.functional.silu).cst / SILU_FACTOR
            tanh = normalize2mom(torch.tanh).cst / TANH_FACTOR
            factors = {ir: tanh if (ir.l, ir.p) == (0, -1) else silu for _, ir in layer.irreps_out}
        readout, constant = self._readout(factors[SCALAR])
        scale = self._of_species("scale")
        of_levels = scale.mean(dim=1) / scale[0].mean()
        if not torch.allclose(of_levels[:, None] * scale[0], scale):
            self._refuse("scales by level and element", "scales by level, or --level to take one")
        names = [f"layers.{k}.weight" for k in range(len(readout))] if len(readout) > 1 else ["weights.0"]
        readout[-1] = readout[-1] * of_levels
        state |= {f"network.readout.{name}": weight for name, weight in zip(names, readout, strict=True)}
        state["scale_shift.scale"] = scale[0]
        shift = self._of_species("shift") + scale * constant
        state["scale_shift.shift"] = shift if len(shift) > 1 else shift[0]
        self._add_to_first_biases(state, constants - constants[0])
        return state

    def _readout_hidden(self) -> list[int]:
        config = self.config
        return list(config["readout_fcn_hidden_neurons"]) if config.get("readout_as_fcn") else []

    def _readout(self, factor: float) -> tuple[list[Tensor], Tensor]:
        """Matrices of the readout, whose input is to be multiplied by ``factor``, and what it adds (K, 1)."""
        if hidden := self._readout_hidden():
            weights = [self.weights[f"readout_FCN.fcn.layer{k}.weight"] for k in range(len(hidden) + 1)]
            silu = normalize2mom(torch.nn.functional.silu).cst / SILU_FACTOR
            weights = [weights[0] * factor, *(weight * silu for weight in weights[1:])]
            return weights, weights[0].new_zeros(max(len(self.levels), 1), 1)
        scalars, width = self.irreps[-1], self.irreps[-1].dim
        between = o3.Irreps([(width // 2, (0, 1))])
        first, before = self._linear("reduce_input_to_hidden", scalars, between)
        last, after = self._linear("reduce_hidden_to_energy", between, o3.Irreps("1x0e"))
        return [first[SCALAR] @ last[SCALAR] * (factor * width**0.5)], before @ last[SCALAR] + after

    def _add_to_first_biases(self, state: State, added: Tensor) -> None:
        """(K, channels) that levels add to the embedding, which is shared here: to the first biases."""
        if not added.any():
            return
        if not self.shared:
            self._refuse(
                "an embedding by level with self-connections by species", "one without the other, or --level"
            )
        for name in ("mix_channels", "self_connection"):
            weight = state[f"network.layers.0.{name}.weights.0"]
            state[f"network.layers.0.{name}.bias"] += added @ weight / len(weight) ** 0.5

    def _layer(self, number: int, layer: NequIPLayer, factors: Mapping[o3.Irrep, float]) -> State:
        """Weights of one interaction block; ``factors``: what its input is to be multiplied with."""
        irreps_in, gate = self.irreps[number], Gate(self.irreps[number + 1])
        is_last = number + 1 == self.layers
        convolution = Paths(irreps_in, self.harmonics, self.irreps[number + 1].lmax, is_last)
        state = {}
        first, bias = self._linear(f"{number}_self_interaction_1", irreps_in, irreps_in)
        for k, (mul, ir) in enumerate(layer.irreps_in):
            state[f"mix_channels.weights.{k}"] = first[ir] * (factors[ir] * mul**0.5)
        if layer.mix_channels.bias is not None:
            state["mix_channels.bias"] = bias
        state |= self._mixing(number, layer, convolution, gate)
        radial = self._radial(number, layer, convolution)
        state |= {f"convolution.radial.{key}": weight for key, weight in radial.items()}
        state |= self._self_connection(number, layer, gate, factors)
        return state

    def _mixing(self, number: int, layer: NequIPLayer, convolution: Paths, gate: Gate) -> State:
        """The map after the convolution: rows are paths, columns end in the gate."""
        mixing, bias = self._linear(f"{number}_self_interaction_2", convolution.irreps_out, gate.irreps_in)
        denominator = float(self.weights[f"{number}_convolution.denominator"])
        state = {}
        for mul, ir in layer.mix_paths.irreps_in:
            rows = [index for key in paths_of(layer) if key[2] == ir for index in convolution.rows(*key)]
            weight = mixing[ir][rows][:, gate.columns(ir, layer)]
            # Their sum is divided by `denominator`, ours by the one of the first layer.
            at = position(layer.gate.irreps_in, ir)
            state[f"mix_paths.weights.{at}"] = weight * (mul**0.5 * self.denominator / denominator)
        if layer.self_connection.bias is not None:
            state["self_connection.bias"] = bias[:, gate.columns(SCALAR, layer)]
        return state

    def _self_connection(
        self, number: int, layer: NequIPLayer, gate: Gate, factors: Mapping[o3.Irrep, float]
    ) -> State:
        name, irreps_in, state = f"{number}_self_connection_intro", self.irreps[number], {}
        shared = self._linear(name, irreps_in, gate.irreps_in)[0] if self.shared else {}
        product = {} if self.shared else self._by_species(name, irreps_in, gate.irreps_in)
        found = 0
        for k, (_, ir) in enumerate(layer.gate.irreps_in):
            if ir not in layer.irreps_in:
                continue
            factor = factors[ir] * layer.irreps_in.count(ir) ** 0.5
            columns = gate.columns(ir, layer)
            if self.shared:
                state[f"self_connection.weights.{found}"] = shared[ir][:, columns] * factor
            else:
                state[f"self_connection.blocks.{k}.weight"] = product[ir][:, :, columns] * factor
            found += 1
        return state

    def _radial(self, number: int, layer: NequIPLayer, convolution: Paths) -> State:
        """The perceptron of the distance, its last columns in the order of the layer's paths."""
        prefix, hidden = f"{number}_convolution.weight_nn.layer", self.config["weight_nn_hidden_neurons"]
        weights = [self.weights[f"{prefix}{k}.weight"] for k in range(len(hidden) + 1)]
        # (2/rc) sin(c r) / r = 0.4/rc² · 5 sin(c rc x) / x, and equipot's basis is 0.2 sin(f x) / x.
        weights[0] = weights[0] * (2.0 / self.cutoff**2 / 0.2)
        silu = normalize2mom(torch.nn.functional.silu).cst / SILU_FACTOR
        weights[1:] = [weight * silu for weight in weights[1:]]
        columns, signs = [], []
        for key in paths_of(layer):
            found = convolution.columns(*key, before_sorting=self._is_before("0.11.0"))
            columns += found
            signs += [self._sign(number, *key)] * len(found)
        if [weight.shape[1] for weight in weights] != [*hidden, convolution.num_weights]:
            raise ValueError(f"'{prefix}...' are not the weights of a network with hidden layers of {hidden}")
        last = weights[-1][:, columns] * torch.tensor(signs, dtype=torch.float64)
        hidden = {f"network.hidden.layers.{k}.weight": weight for k, weight in enumerate(weights[:-1])}
        return {"basis.frequencies": self.frequencies * self.cutoff, **hidden, "network.linear.weight": last}

    def _sign(self, number: int, ir_in: o3.Irrep, l_sh: int, ir_out: o3.Irrep) -> float:
        """As `sign_of`."""
        degrees = (ir_in.l, l_sh, ir_out.l)
        name = "_".join(map(str, degrees))
        stored = self.weights.get(f"{number}_convolution.convolution._compiled_main_left_right._w3j_{name}")
        if stored is None:
            if min(degrees) > 0 and self._is_before("0.11.0"):
                raise KeyError(f"{number}_convolution ... _w3j_{name}")
            return 1.0
        return layout.sign_of(self.path, stored, degrees)

    def _is_before(self, version: str) -> bool:
        numbers = [int(word) for word in str(self.config["version"]).split(".")[:3] if word.isdecimal()]
        is_development = str(self.config["version"]).startswith(f"{version}.dev0")
        return numbers < [int(word) for word in version.split(".")] or is_development

    def _linear(
        self, name: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps
    ) -> tuple[dict[o3.Irrep, Tensor], Tensor]:
        """e3nn's Linear: a matrix (channels in, channels out) for each irrep, and what is added to scalars.

        The latter is (K, channels out), of each level (at least one). e3nn divides by √(channels in), those
        of a one-hot vector of the level of theory included.
        """
        weight = self.weights[f"{name}.linear.weight"].reshape(-1)
        modal = self._rows_of_level(name)
        blocks = [*irreps_in, (modal, SCALAR)] if modal else list(irreps_in)
        inputs = {ir: sum(mul for mul, other in blocks if other == ir) for _, ir in blocks}
        pieces: dict[o3.Irrep, list[Tensor]] = {}
        at = 0
        for mul, ir in blocks:
            row = []
            for mul_out, ir_out in irreps_out:
                if ir_out == ir:
                    row.append(weight[at : at + mul * mul_out].reshape(mul, mul_out) / inputs[ir] ** 0.5)
                    at += mul * mul_out
            if row:
                pieces.setdefault(ir, []).append(torch.cat(row, dim=1))
        self._require_size(name, weight, at)
        matrices = {ir: torch.cat(rows) for ir, rows in pieces.items()}
        width = irreps_out.count(SCALAR)
        bias = self.weights.get(f"{name}.linear.bias", weight[:0])
        constants = weight.new_zeros(max(len(self.levels), 1), width) + (bias if len(bias) > 0 else 0.0)
        if modal:
            matrices[SCALAR], of_levels = matrices[SCALAR].split([inputs[SCALAR] - modal, modal])
            constants = constants + of_levels[self.modal_rows]
        return matrices, constants

    def _rows_of_level(self, name: str) -> int:
        """How many inputs of a linear map are the one-hot vector of the level."""
        uses = {
            "onehot_to_feature_x": "use_modal_node_embedding",
            "self_interaction_1": "use_modal_self_inter_intro",
            "self_interaction_2": "use_modal_self_inter_outro",
            "reduce_input_to_hidden": "use_modal_output_block",
        }
        key = next((key for part, key in uses.items() if name.endswith(part)), None)
        return len(self.modals) if key and self.config.get(key) else 0

    def _by_species(self, name: str, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> dict[o3.Irrep, Tensor]:
        """e3nn's FullyConnectedTensorProduct with one-hot vectors: (species, channels in, channels out)."""
        weight, count = self.weights[f"{name}.fc_tensor_product.weight"].reshape(-1), len(self.rows)
        matrices: dict[o3.Irrep, Tensor] = {}
        at = 0
        for mul, ir in irreps_in:
            row = []
            for mul_out, ir_out in irreps_out:
                if ir_out == ir:
                    block = weight[at : at + mul * count * mul_out].reshape(mul, count, mul_out)
                    row.append(block.transpose(0, 1) / (mul * count) ** 0.5)
                    at += mul * count * mul_out
            if row:
                matrices[ir] = torch.cat(row, dim=2)[self.rows]
        self._require_size(name, weight, at)
        return matrices

    def _require_size(self, name: str, weight: Tensor, expected: int) -> None:
        if len(weight) != expected:
            raise ModelFileError(
                f"{self.path}: '{name}' has {len(weight)} weights, its irreps need {expected}."
            )


def _new_name(name: str) -> str:
    """Of a weight, by its name in whatever version of SevenNet."""
    module, _, rest = name.partition(".")
    module = _OLD_NAMES.get(module, module).replace(" ", "_")
    return f"{module}.{rest.replace('denumerator', 'denominator')}"
