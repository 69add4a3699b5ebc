"""From atomic energies to forces, virials and stress: the one gradient path of the project."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from ase.data import atomic_masses, atomic_numbers
from torch import Tensor, nn

from equipot.engine.program import Program
from equipot.models.outputs import Outputs
from equipot.models.terms import ZBL, FieldTerm, SpeciesScaleShift
from equipot.ops.operators import load_operators

# Bounds the memory of strictly local models. On a CPU tensors of so many edges also stay near the cache:
# three times faster than all at once for 5,000 atoms of water (measured, 2,048 to 8,192 alike). A GPU wants
# more.
EDGES_IN_FLIGHT = {"cpu": 8192, "cuda": 2**20}


class Inputs(NamedTuple):
    """What a potential is given; as of `Potential.forward` and `PotentialWithOutputs.forward`."""

    edge_vec: Tensor
    edge_index: Tensor
    atom_types: Tensor
    owned: Tensor
    level: Tensor | None = None
    field: Tensor | None = None
    derivatives: bool = True


class Potential(nn.Module):
    """A network, its scale and shift, optional repulsion, and the derivatives of their energy.

    With g_e = ∂E/∂edge_vec_e: F_i += g_e for the center, F_j −= g_e for the neighbor, and the virial
    −edge_vec ⊗ g is counted at the neighbor. For a model without message passing, counting it there makes
    Σ_i W_i v_i the heat current of Fan et al., Phys. Rev. B 92, 094301 (2015), eq. 32.
    """

    edges_in_flight: dict[str, int]
    levels: list[str]
    output_names: list[str]  # beside energy, forces and virials, in the order of their values
    derivative_names: list[str]  # of the last of them, which are derivatives
    derived: list[tuple[int, float]]  # of these: column of what they are derivatives of, and a factor
    takes_level: Final[bool]  # the network does
    has_energy: Final[bool]

    __jit_unused_properties__ = ["dtype", "field_outputs"]  # noqa: RUF012  (TorchScript reads this name; it cannot compile `next`)

    def __init__(
        self,
        network: nn.Module,
        species: list[str],
        scale_shift: SpeciesScaleShift,
        zbl: ZBL | None = None,
        levels: Sequence[str] = (),
        outputs: Outputs | None = None,
        field: FieldTerm | None = None,
    ):
        super().__init__()
        load_operators()
        self.network = network
        self.scale_shift = scale_shift
        self.zbl = zbl
        self.outputs = outputs
        self.field_term = field
        specs = [] if outputs is None else [*outputs.specs, *outputs.derived]
        self.output_names = [spec.name for spec in specs]
        self.derivative_names = [spec.name for spec in specs if spec.derivative_of]
        self.derived = [(outputs.column(s.derivative_of), s.factor) for s in specs if s.derivative_of]
        self.species = species
        self.levels = list(levels)
        self.takes_level = network.takes_level
        self.has_energy = not isinstance(self, OutputsAlone)
        self.cutoff: float = network.cutoff
        self.num_exchanges: int = network.num_exchanges
        self.widest_exchange: int = network.widest_exchange
        self.edges_in_flight = dict(EDGES_IN_FLIGHT)

    @property
    def dtype(self) -> torch.dtype:
        """The network's floating-point type; geometry and energies are always float64."""
        return next(self.network.parameters()).dtype

    @property
    def field_outputs(self) -> dict[str, float]:
        """Outputs whose terms the energy has in a field, and their units; none: it knows no field."""
        return {} if self.field_term is None else self.field_term.units

    @torch.jit.unused
    def program(self) -> Program | None:
        """What an evaluation does, for the engine; of a potential with one level. None as `Network.steps`."""
        program = Program()
        program.facts |= {
            "dtype": str(self.dtype).removeprefix("torch."),
            "species": self.species,
            "masses": [float(atomic_masses[atomic_numbers[symbol]]) for symbol in self.species],
            "cutoff": self.cutoff,
            "num_exchanges": self.num_exchanges,
            "widest_exchange": self.widest_exchange,
        }
        if self.network.steps(program) is None:
            return None
        nothing = torch.zeros(len(self.species), dtype=torch.float64)
        program.stored("scale", self.scale_shift.scale if self.has_energy else nothing)
        program.stored("shift", self.scale_shift.shift.reshape(-1) if self.has_energy else nothing)
        program.facts |= {} if self.has_energy else {"energy": False}
        if self.zbl is not None:
            self.zbl.write(program)
        if self.outputs is not None:
            self.outputs.write(program)
        if self.field_term is not None:
            self.field_term.write(program)
        return program

    def atom_energies(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, level: Tensor | None = None
    ) -> Tensor:
        """(E, 3) float64 Å, (2, E), (N,), (N,) int64 or None → (N,) float64 eV."""
        all_owned = torch.ones_like(atom_types, dtype=torch.bool)
        return self._of_atoms(Inputs(edge_vec, edge_index, atom_types, all_owned, level))[0]

    @torch.jit.unused
    def values(self, *inputs: Tensor) -> Tensor:
        """Arguments as of `forward` → those of outputs, (N, V) float64, without a derivative."""
        return self._of_atoms(Inputs(*inputs))[1]

    def forward(
        self,
        edge_vec: Tensor,
        edge_index: Tensor,
        atom_types: Tensor,
        owned: Tensor,
        level: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The deployed contract; ``level`` (N,) int64, of each atom, is for training on several levels only.

        edge_vec (E, 3) float64 Å, edge_index (2, E) int64, atom_types (N,) int64, owned (N,) bool
        → atom_energies (N,) float64 eV, zero where not owned; forces (N, 3) float64 eV/Å; atom_virials
        (N, 3, 3) float64 eV. In train mode all three can be differentiated by the parameters. Gradients
        must be enabled (TorchScript cannot switch them on).
        """
        energies, forces, virials, _ = self._contract(Inputs(edge_vec, edge_index, atom_types, owned, level))
        return energies, forces, virials

    def _of_atoms(self, given: Inputs) -> tuple[Tensor, Tensor]:
        """(N,) energies, and the values of further outputs but derivatives, (N, V); zero where not owned."""
        edge_vec, edge_index, atom_types = given.edge_vec, given.edge_index, given.atom_types
        level, field = given.level, given.field
        if level is None and len(self.levels) > 1:
            raise ValueError("Choose one of the model's levels of theory: " + ", ".join(self.levels))
        if level is not None and len(self.levels) < 2:
            raise ValueError("A level of theory is given, but this model has only one.")
        if self.takes_level:
            rows = self.network(edge_vec, edge_index, atom_types, level)
        else:
            rows = self.network(edge_vec, edge_index, atom_types)
        energies = edge_vec.new_zeros([atom_types.shape[0]])
        values = edge_vec.new_zeros([atom_types.shape[0], 0])
        if self.has_energy:
            column = rows[:, 0] if level is None else rows.gather(1, level.unsqueeze(1)).squeeze(1)
            energies = self.scale_shift(column, atom_types, level)
            if self.zbl is not None:
                energies = energies + self.zbl(edge_vec, edge_index, atom_types)
        if self.outputs is not None:
            first = max(len(self.levels), 1) if self.has_energy else 0
            values = self.outputs(rows[:, first:], atom_types)
        if field is not None:
            if self.field_term is None:
                raise ValueError("An electric field is given, but the model knows none (model.field).")
            energies, values = self.field_term(energies, values, field)
        owned = given.owned.to(energies.dtype)
        return energies * owned, values * owned.unsqueeze(1)

    def _contract(self, given: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `forward`, and the values of further outputs, (N, V), zero where not owned."""
        energies, gradient, values = self._evaluated(given)
        num_atoms, width = given.atom_types.shape[0], gradient.shape[1]
        edge_virials = (given.edge_vec.unsqueeze(2) * gradient[:, :3].unsqueeze(1)).view(-1, 9)
        at_center = torch.ops.equipot.segment_sum(gradient, given.edge_index, 0, num_atoms)
        at_neighbor = torch.ops.equipot.segment_sum(
            torch.cat([gradient, edge_virials], dim=1), given.edge_index, 1, num_atoms
        )
        virials = -at_neighbor[:, width:].reshape(-1, 3, 3)
        pulls = at_center - at_neighbor[:, :width]  # what −∂/∂r of each is
        if width > 3:
            values = torch.cat([values, -pulls[:, 3:]], dim=1)
        return energies, pulls[:, :3], virials, values

    def _evaluated(self, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """As `_with_gradient`, in parts where that bounds the memory."""
        limit = self.edges_in_flight["cpu" if given.edge_vec.is_cpu else "cuda"]
        if self.num_exchanges == 0 and not self.training and given.edge_index.shape[1] > limit:
            return self._in_parts(given, limit)
        return self._with_gradient(given)

    def _with_gradient(self, given: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) energies, zero where not owned, the (E, 3) gradient of their sum by edge_vec, and values.

        Beside that gradient, (E, 3 + 9 D), those of the components of what D outputs are derivatives of.
        Without energies it is zero, and nothing is differentiated.
        """
        if not self.has_energy:
            energies, values = self._of_atoms(given)
            return energies, torch.zeros_like(given.edge_vec), values
        edge_vec = given.edge_vec.detach().requires_grad_(True)
        energies, values = self._of_atoms(
            Inputs(edge_vec, given.edge_index, given.atom_types, given.owned, given.level, given.field)
        )
        sums = [energies.sum()]
        if given.derivatives:
            for column, factor in self.derived:
                sums += [factor * values[:, column + axis].sum() for axis in range(3)]
        gradients: list[Tensor] = []
        for index, total in enumerate(sums):
            last = index + 1 == len(sums)
            gradient = torch.autograd.grad(
                [total], [edge_vec], create_graph=self.training, retain_graph=self.training or not last
            )[0]
            assert gradient is not None  # for TorchScript: all depend on edge_vec
            gradients.append(gradient)
        if not self.training:
            energies, values = energies.detach(), values.detach()
        return energies, torch.cat(gradients, dim=1) if len(gradients) > 1 else gradients[0], values

    def _in_parts(self, given: Inputs, limit: int) -> tuple[Tensor, Tensor, Tensor]:
        """The same for a strictly local model, whose atoms can be evaluated a few at a time.

        Memory is then that of ``limit`` edges (more only for a single atom with more neighbors).
        """
        edge_index, level, field = given.edge_index, given.level, given.field
        order = torch.argsort(edge_index[0], stable=True)
        num_atoms = given.atom_types.shape[0]
        counts = torch.bincount(edge_index[0], minlength=num_atoms)
        # Of each atom, in that order.
        first_edge = torch.cat([torch.zeros_like(counts[:1]), counts.cumsum(0)])
        energies: list[Tensor] = []
        values: list[Tensor] = []
        width = 3 + (9 * len(self.derived) if given.derivatives else 0)
        gradient = given.edge_vec.new_zeros([edge_index.shape[1], width])
        atom = 0
        while atom < num_atoms:
            start = int(first_edge[atom])
            # As many whole atoms as fit, and at least one.
            last = int(torch.searchsorted(first_edge, start + limit, right=True)) - 1
            last = min(max(last, atom + 1), num_atoms)
            edges = order[start : int(first_edge[last])]
            center = edge_index[0].index_select(0, edges) - atom
            others, position = torch.unique(edge_index[1].index_select(0, edges), return_inverse=True)
            here = torch.cat([torch.arange(atom, last, device=others.device), others])
            owned = given.owned.index_select(0, here)
            owned[last - atom :] = False  # the others are there as neighbors only
            part = self._with_gradient(
                Inputs(
                    given.edge_vec.index_select(0, edges),
                    torch.stack([center, position + (last - atom)]),
                    given.atom_types.index_select(0, here),
                    owned,
                    None if level is None else level.index_select(0, here),
                    None if field is None else field.index_select(0, here),
                    given.derivatives,
                )
            )
            energies.append(part[0][: last - atom])
            gradient.index_copy_(0, edges, part[1])
            values.append(part[2][: last - atom])
            atom = last
        return torch.cat(energies), gradient, torch.cat(values)


class PotentialWithOutputs(Potential):
    """A potential whose contract has a fourth part: (N, V) float64 values of its outputs, side by side."""

    def forward(
        self,
        edge_vec: Tensor,
        edge_index: Tensor,
        atom_types: Tensor,
        owned: Tensor,
        level: Tensor | None = None,
        field: Tensor | None = None,
        derivatives: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `Potential.forward`; the values are as in `Outputs`, zero where not owned.

        ``field`` (3,) or, of each atom's structure, (N, 3) float64 V/Å, for a model with a `field_term`: all
        is as it is there. Outputs that are derivatives by positions come last; ghosts have some, too, as of
        forces, to be added to those of their owners. Without ``derivatives`` they are not there.
        """
        if field is not None:
            field = field.expand(atom_types.shape[0], 3)
        return self._contract(Inputs(edge_vec, edge_index, atom_types, owned, level, field, derivatives))


class OutputsAlone(Potential):
    """A model without energies: its contract has but one part, the values of its outputs."""

    def forward(
        self,
        edge_vec: Tensor,
        edge_index: Tensor,
        atom_types: Tensor,
        owned: Tensor,
        level: Tensor | None = None,
    ) -> tuple[Tensor]:
        """As `PotentialWithOutputs.forward`, the last part alone; gradients need not be enabled."""
        return (self._evaluated(Inputs(edge_vec, edge_index, atom_types, owned, level, None, False))[2],)
