"""A model of NequIP's code as data: what nequip_dump.py has written, and what its models have in common."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from ase.data import atomic_numbers
from e3nn import o3
from torch import Tensor

from equipot.errors import ModelFileError
from equipot.interop.layout import refuse
from equipot.nn.mlp import SILU_FACTOR

FUNC = "model.func"  # the energy's modules, in their order
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
        refuse(self.path, found, known)

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
            found[ir][rows_of_block(blocks_in, i), rows_of_block(blocks_out, o)] = (
                weight[at : at + size].view(shape) * scale
            )
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
            found[ir][:, rows_of_block(blocks_in, i), rows_of_block(blocks_out, o)] = product
            at += size
        return found


def rows_of_block(irreps: o3.Irreps, block: int) -> slice:
    """The channels of a block among those of its irrep."""
    mul, ir = irreps[block]
    first = sum(m for m, other in irreps[:block] if other == ir)
    return slice(first, first + mul)


class DumpedModel:
    """A dumped model, checked: what equipot can express of it, and nothing else.

    Raises:
        ModelFileError: names what the model uses and equipot does not have.
    """

    bessel: ClassVar[str]  # its module
    # Of modules of a class, attributes that equipot has with one value only.
    only: ClassVar[dict[str, dict[str, Any]]] = {}

    def __init__(self, dump: Dump):
        self.dump, self.path = dump, dump.path
        self.levels: list[str] = []
        try:
            if (kind := dump.modules["model"]["class"]) != "ForceStressOutput":
                dump.refuse(f"the model {kind}", "energies and their derivatives")
            self._require_known(dump.children(FUNC))
            dump.require_only(self.only)
            self._read_common()
            self._read()
        except KeyError as error:
            raise ModelFileError(f"{self.path}: NequIP's model lacks {error}.") from None

    def _known(self, found: Mapping[str, str]) -> dict[str, str]:
        """Names and classes of modules; those of `_OPTIONAL` may be missing."""
        raise NotImplementedError

    def _read(self) -> None:
        raise NotImplementedError

    def _require_known(self, found: Mapping[str, str]) -> None:
        known = self._known(found)
        for name, kind in found.items():
            if known.get(name) != kind:
                self.dump.refuse(f"{kind} ({name})", f"only {known.get(name, 'what its own builders make')}")
        missing = [name for name in known if name not in found and name not in ("pair_potential", "cutoff")]
        if missing:
            raise KeyError(missing[0])

    def _read_common(self) -> None:
        dump = self.dump
        names = dump.modules[""]["type_names"]
        unknown = [name for name in names if name not in atomic_numbers]
        if unknown:
            dump.refuse(f"types of atoms that are no elements, {unknown[0]}", "only chemical symbols")
        self.species = sorted(names, key=lambda name: atomic_numbers[name])
        self.rows = [names.index(symbol) for symbol in self.species]
        self.cutoff = float(dump.modules[f"{FUNC}.edge_norm"]["r_max"])
        self.frequencies = math.pi * dump.arrays[f"{self.bessel}.bessel_weights"].reshape(-1)
        count = len(self.frequencies)
        fixed = torch.equal(self.frequencies, math.pi * torch.arange(1, count + 1, dtype=torch.float64))
        self.trainable_bessel = not fixed or bool(dump.modules[self.bessel]["trainable"])

    def _require_harmonics(self, irreps: str) -> None:
        self.harmonics = o3.Irreps(irreps)
        self.l_max = self.harmonics.lmax
        if self.harmonics != o3.Irreps.spherical_harmonics(self.l_max) or self.l_max > 4:
            self.dump.refuse(
                f"harmonics {self.harmonics}", "all up to l = 4 at most, with the parity of vectors"
            )

    def _common_config(self) -> dict[str, Any]:
        """Of the section ``model`` what both architectures have."""
        power = self.dump.modules[f"{self.bessel}.cutoff"]["p"]
        if power != int(power):
            self.dump.refuse(f"polynomial_cutoff_p {power}", "whole numbers")
        return {
            "cutoff": self.cutoff,
            "l_max": self.l_max,
            "num_bessel": len(self.frequencies),
            "polynomial_cutoff": int(power),
            "pair_cutoffs": self._pair_cutoffs(),
            "zbl": "cutoff" if self._zbl() else False,
            "scale": float(self._of_species("scales", 1.0).mean()) or 1.0,
        }

    def _scale_shift(self) -> dict[str, Tensor]:
        return {
            "scale_shift.scale": self._of_species("scales", 1.0),
            "scale_shift.shift": self._of_species("shifts", 0.0),
        }

    def _of_species(self, name: str, otherwise: float) -> Tensor:
        """(T,) scales or shifts, eV, in the order of ``species``."""
        values = self.dump.arrays[f"{FUNC}.per_type_energy_scale_shift.{name}"].reshape(-1)
        if len(values) < 2:
            one = float(values) if len(values) else otherwise
            return torch.full((len(self.rows),), one, dtype=torch.float64)
        return values[self.rows]

    def _zbl(self) -> bool:
        """Whether there is repulsion."""
        dump, name = self.dump, f"{FUNC}.pair_potential"
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
        count, inverse = len(self.rows), self.dump.arrays[f"{FUNC}.edge_norm._rmax_recip"]
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


def of_mlp(matrices: Iterable[Tensor]) -> list[Tensor]:
    """Weights of `nn.mlp.MLP`, which scales them."""
    return [
        matrix * (len(matrix) ** 0.5 / (SILU_FACTOR if k > 0 else 1.0)) for k, matrix in enumerate(matrices)
    ]
