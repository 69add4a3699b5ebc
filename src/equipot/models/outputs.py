"""Outputs beside the energy: from rows of irreps to Cartesian tensors, in the units of their labels."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from e3nn import o3
from numpy.typing import NDArray
from torch import Tensor, nn

from equipot.cartesian import irreps_basis, rank_of
from equipot.engine.program import Program
from equipot.errors import ConfigError
from equipot.models.network import rows_of
from equipot.quantities import facts_of_output


class OutputSpec(NamedTuple):
    """One output: what `equipot.config.outputs.OutputConfig` says of it that a model must know."""

    name: str
    irreps: str  # of one value
    shape: tuple[int, ...]  # of one value
    symmetry: str = ""  # of the indices of Cartesian tensors of rank 2 and more
    per_atom: bool = False
    mean: bool = False
    positive: bool = False
    derivative_of: str = ""  # the structure's vector whose derivative by positions it is; has no rows itself
    factor: float = 1.0  # of that vector's unit per Å, in its own
    of_elements: Mapping[str, str] = MappingProxyType({})  # irreps by element, where elements differ
    previous: bool = False  # read from the last layer but one

    @property
    def size(self) -> int:
        """Numbers in one value."""
        return int(np.prod(self.shape))


def basis_change(spec: OutputSpec) -> NDArray[np.float64]:
    """(numbers of irreps, numbers of the value), orthonormal rows: a value is row @ this.

    A row has a block for each term of the irreps, component-major with channels last, as features have.
    """
    found = []
    for mul, ir in o3.Irreps(spec.irreps):
        if spec.symmetry:
            found.append(irreps_basis(spec.symmetry)[ir.l].swapaxes(0, 1).reshape(mul * ir.dim, -1))
        else:  # e3nn's order: channels first; that of l = 1 is x, y, z
            block = np.eye(mul * ir.dim).reshape(mul, ir.dim, mul * ir.dim)
            found.append(block.transpose(1, 0, 2).reshape(mul * ir.dim, -1))
    if not spec.symmetry:
        return _beside(found)
    terms = len(found) * 3 ** rank_of(spec.symmetry) // spec.size  # of one tensor
    return _beside([np.concatenate(found[i : i + terms]) for i in range(0, len(found), terms)])


def _beside(blocks: Sequence[NDArray]) -> NDArray:
    """Block-diagonal."""
    out = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        out[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return out


def present(spec: OutputSpec, species: Sequence[str]) -> NDArray[np.bool_]:
    """(T, numbers of irreps): which of a row each element has; the first channels of each irrep.

    Raises:
        ConfigError: nothing is said of an element.
    """
    terms, found = o3.Irreps(spec.irreps), []
    for element in species:
        if spec.of_elements and element not in spec.of_elements:
            raise ConfigError(
                f"model.outputs.{spec.name} says what {', '.join(spec.of_elements)} have, but not {element}, "
                "which is in the data: add it."
            )
        own = o3.Irreps(spec.of_elements.get(element, spec.irreps))
        found.append(np.concatenate([np.tile(np.arange(mul) < own.count(ir), ir.dim) for mul, ir in terms]))
    return np.array(found)


def output_irreps(specs: Sequence[OutputSpec], parity: bool | str = True) -> o3.Irreps:
    """Of the rows that a network gives for these outputs, one after the other.

    With ``parity`` of "ignored" all are called even, as features are.
    """
    terms = [term for spec in specs if not spec.derivative_of for term in o3.Irreps(spec.irreps)]
    return o3.Irreps([(mul, (ir.l, 1) if parity == "ignored" else ir) for mul, ir in terms])


class Outputs(nn.Module):
    """Value = Q (scale · row + shift of the element), softplus of it where it must be positive, in float64.

    Where elements differ, an element has a factor of its own to the scale, 0 for what it lacks. Q changes
    from irreps to Cartesian components (`basis_change`); scales (K,) and shifts (T, K), which even scalars
    alone have, are those of `equipot.training.outputs.output_statistics`, and so are the spreads of the
    labels. The rows of all outputs lie side by side, and so do their values.
    """

    def __init__(
        self,
        all_specs: Sequence[OutputSpec],
        statistics: Mapping[str, Mapping[str, Any]],
        species: Sequence[str],
    ):
        super().__init__()
        self.spreads = {
            spec.name: float((statistics.get(spec.name) or {}).get("spread", 1.0)) for spec in all_specs
        }
        self.specs = specs = [spec for spec in all_specs if not spec.derivative_of]
        self.derived = [spec for spec in all_specs if spec.derivative_of]
        matrices = [basis_change(spec) for spec in specs]
        scales, shifts, factors = [], [], []
        for spec, matrix in zip(specs, matrices, strict=True):
            known = statistics.get(spec.name) or {}
            scales.append(torch.tensor(known.get("scale", np.ones(len(matrix))), dtype=torch.float64))
            zeros = np.zeros((len(species), len(matrix)))
            shifts.append(torch.tensor(known.get("shift", zeros), dtype=torch.float64))
            factor = known.get("of_elements", present(spec, species))
            factors.append(torch.tensor(factor, dtype=torch.float64))
        self.register_buffer("basis", torch.from_numpy(_beside(matrices)), persistent=False)
        self.scale = nn.Parameter(torch.cat(scales), requires_grad=False)
        self.shift = nn.Parameter(torch.cat(shifts, dim=1), requires_grad=False)
        differ = any(spec.of_elements for spec in specs)
        factor = nn.Parameter(torch.cat(factors, dim=1), requires_grad=False) if differ else None
        self.register_parameter("of_elements", factor)
        positive = torch.cat([torch.full((spec.size,), spec.positive) for spec in specs])
        self.register_buffer("positive", positive, persistent=False)
        self.any_positive = any(spec.positive for spec in specs)

    @torch.jit.unused
    def write(self, program: Program) -> None:
        """Say it in a program."""
        program.require(4)
        values = []
        for spec in (*self.specs, *self.derived):
            values.append({"name": spec.name, "positive": spec.positive, **facts_of_output(spec.name)})
            if spec.derivative_of:
                values[-1] |= {"derivative_of": spec.derivative_of, "factor": spec.factor}
        scale = (
            self.scale.expand_as(self.shift) if self.of_elements is None else self.scale * self.of_elements
        )
        tables = {"scale": scale, "shift": self.shift, "basis": self.basis, "values": values}
        program.facts["outputs"] = program.stored("outputs", {"array": program.output_rows, **tables})

    @torch.jit.unused
    def statistics(self, species: Sequence[int | None]) -> dict[str, dict[str, Any]]:
        """What it was made of, for other elements: of each the one that it is now, or None for a new one."""
        found: dict[str, dict[str, Any]] = {spec.name: {} for spec in self.derived}
        shift, start = rows_of(self.shift, species), 0
        for spec in self.specs:
            columns = slice(start, start + o3.Irreps(spec.irreps).dim)
            found[spec.name] = {"scale": self.scale[columns].tolist(), "shift": shift[:, columns].tolist()}
            if self.of_elements is not None:
                factors = rows_of(self.of_elements[:, columns], species)
                found[spec.name]["of_elements"] = factors.tolist()
            start = columns.stop
        return {name: one | {"spread": self.spreads[name]} for name, one in found.items()}

    @torch.jit.unused
    def column(self, name: str) -> int:
        """The first of an output's values, of those that have rows."""
        names = [spec.name for spec in self.specs]
        return sum(spec.size for spec in self.specs[: names.index(name)])

    def forward(self, rows: Tensor, atom_types: Tensor) -> Tensor:
        """(N, K) of the network, (N,) → (N, numbers of all values) float64."""
        scaled = rows.to(torch.float64) * self.scale
        if self.of_elements is not None:
            scaled = scaled * self.of_elements.index_select(0, atom_types)
        scaled = scaled + self.shift.index_select(0, atom_types)
        values = scaled @ self.basis
        if self.any_positive:
            values = torch.where(self.positive, nn.functional.softplus(values), values)
        return values
