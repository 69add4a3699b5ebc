"""Allegro's models (https://github.com/mir-group/allegro, nequip-allegro 0.8 and newer) as `allegro_dense`.

What differs and is accounted for here: the order of weights of harmonics and of paths, the normalisation of
products, and factors of radial functions and of sums over neighbors.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from e3nn import o3
from torch import Tensor

from equipot.interop.dump import FUNC, DumpedModel, of_mlp
from equipot.interop.layout import paths_of
from equipot.models.allegro_dense import AllegroDense, DenseLayer
from equipot.models.network import State


class AllegroModel(DumpedModel):
    """A model of AllegroModel, or of FullAllegroModel."""

    bessel = f"{FUNC}.radial_chemical_embed.bessel_encode"
    only: ClassVar = {
        "SphericalHarmonics": {"normalize": True, "normalization": "component"},
        "MakeWeightedChannels": {"weight_individual_irreps": True, "alpha": 1.0},
        "Contracter": {"irrep_normalization": "component", "scatter_factor": None, "instructions": None},
        "EdgewiseReduce": {"reduce": "sum"},
        "AtomwiseReduce": {"reduce": "sum", "constant": 1.0},
        "ScalarMLPFunction": {"bias": False},
    }

    def _known(self, found: Mapping[str, str]) -> dict[str, str]:
        embedding = self.dump.children(f"{FUNC}.radial_chemical_embed")
        if embedding != {"bessel_encode": "BesselEdgeLengthEncoding", "type_embed": "ProductTypeEmbedding"}:
            self.dump.refuse(found["radial_chemical_embed"], "only TwoBodyBesselScalarEmbed")
        return {
            "edge_norm": "EdgeLengthNormalizer",
            "radial_chemical_embed": "SequentialGraphNetwork",
            "scalar_embed_mlp": "ScalarMLP",
            "tensor_embed": "TwoBodySphericalHarmonicTensorEmbed",
            "allegro": "Allegro_Module",
            "edge_readout": "ScalarMLP",
            "edge_eng_sum": "EdgewiseReduce",
            "per_type_energy_scale_shift": "PerTypeScaleShift",
            "cutoff": "AddRadialCutoffToData",
            "pair_potential": "ZBL",
            "total_energy_sum": "AtomwiseReduce",
        }

    def _read(self) -> None:
        dump, allegro = self.dump, f"{FUNC}.allegro"
        if self.trainable_bessel:
            dump.refuse("bessel_trainable", "with Allegro frequencies nπ only")
        self._require_harmonics(dump.modules[f"{FUNC}.tensor_embed.sh"]["irreps_out"])
        facts = dump.modules[allegro]
        self.layers, self.scalars = facts["num_layers"], facts["num_scalar_features"]
        self.channels = facts["num_tensor_features"]
        norm = dump.arrays[f"{allegro}.avg_num_neighbors_norm.norm_const"].reshape(-1)
        if len(norm) > 1:
            dump.refuse("avg_num_neighbors of each type", "with Allegro one for all")
        self.denominator = max(1.0, 1.0 / float(norm))
        self.ratio = float(norm) * self.denominator  # of sums over neighbors, to equipot's
        self.two_body = dump.perceptron(f"{FUNC}.scalar_embed_mlp.mlp_module")
        self.latents = [dump.perceptron(f"{allegro}.latents.{k}") for k in range(self.layers)]
        self.readout = dump.perceptron(f"{FUNC}.edge_readout.mlp_module")
        if min(len(matrices) for matrices in (*self.latents, self.readout)) < 2:
            dump.refuse("an allegro or readout network without nonlinearity", "hidden layers with SiLU")

    def model_config(self) -> dict[str, Any]:
        """The section ``model`` that gives a network of this architecture."""
        allowed = o3.Irreps(self.dump.modules[f"{FUNC}.allegro"]["tensor_track_allowed_irreps"])
        return self._common_config() | {
            "type": "allegro_dense",
            "parity": not all(ir.p == (-1) ** ir.l for _, ir in allowed),
            "layers": self.layers,
            "scalar_channels": self.scalars,
            "channels": self.channels,
            "pair_channels": len(self.two_body[0]),
            "two_body_hidden": [len(matrix) for matrix in self.two_body[1:]],
            "latent_hidden": [len(matrix) for matrix in self.latents[0][1:]],
            "readout_hidden": [len(matrix) for matrix in self.readout[1:]],
        }

    def state(self, network: AllegroDense) -> State:
        """The state dict of a Potential with such a network."""
        dump, embed = self.dump, f"{FUNC}.radial_chemical_embed.type_embed"
        (radial,) = dump.perceptron(f"{embed}.basis_linear")
        (tensors,) = dump.perceptron(f"{FUNC}.tensor_embed.env_embed_linear")
        (first,) = dump.perceptron(f"{FUNC}.allegro.first_layer_env_embed_projection")
        # w sinc(w x) = sin(π w x) / (π x), and equipot's basis is 0.2 sin(f x) / x.
        state = {
            "pair.center": dump.arrays[f"{embed}.center_embed.weight"][self.rows],
            "pair.neighbor": dump.arrays[f"{embed}.neighbor_embed.weight"][self.rows],
            "pair.radial.weight": of_mlp([radial / (0.2 * math.pi)])[0],
            "first_tensors.weight.weight": of_mlp([self._by_degree(tensors)])[0],
            "first.weight": of_mlp([self._parted(first)])[0],
        }
        networks = {"two_body": self.two_body}
        for k, (layer, matrices) in enumerate(zip(network.layers, self.latents, strict=True)):
            last = matrices[-1] if k + 1 == self.layers else self._parted(matrices[-1])
            networks[f"layers.{k}.latent"] = [*matrices[:-1], last]
            state[f"layers.{k}.product.weight"] = self._product(k, layer)
        networks["readout"] = [*self.readout[:-1], self.readout[-1] * self.ratio]
        for name, matrices in networks.items():
            state |= {f"{name}.layers.{n}.weight": matrix for n, matrix in enumerate(of_mlp(matrices))}
        return {f"network.{name}": weight for name, weight in state.items()} | self._scale_shift()

    def _by_degree(self, matrix: Tensor) -> Tensor:
        """Columns (channel, degree) of weights of harmonics as (degree, channel)."""
        parted = matrix.view(len(matrix), self.channels, self.l_max + 1)
        return parted.transpose(1, 2).reshape(len(matrix), -1)

    def _parted(self, matrix: Tensor) -> Tensor:
        """Columns of scalars, then weights of the environment, which is normalised here as there."""
        scalars, weights = matrix.split([self.scalars, matrix.shape[1] - self.scalars], dim=1)
        return torch.cat([scalars, self._by_degree(weights) * self.ratio], dim=1)

    def _product(self, number: int, layer: DenseLayer) -> Tensor:
        """(paths, channels): weights of the tensor product."""
        name = f"{FUNC}.allegro.tps.{number}"
        module, weights = self.dump.modules[name], self.dump.arrays[f"{name}.weights"]
        one, two, out = (o3.Irreps(module[key]) for key in ("irreps_in1", "irreps_in2", "irreps_out"))
        theirs = [
            (ir_one, ir_two.l, ir_out)
            for _, ir_out in out
            for _, ir_one in one
            for _, ir_two in two
            if ir_out in ir_one * ir_two
        ]
        weights = weights.reshape(-1, len(theirs)).expand(self.channels, -1)
        ours = paths_of(layer)
        if sorted(map(str, ours)) != sorted(map(str, theirs)):
            self.dump.refuse(f"other paths in layer {number} than AllegroModel", "all that irreps allow")
        into = {key: sum(other[2] == key[2] for other in ours) ** 0.5 for key in ours}
        rows = [weights[:, theirs.index(key)] * into[key] for key in ours]
        return torch.stack(rows)
