"""Many structures in one evaluation: their neighbor lists side by side, as one graph of separate blocks."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipot.data.edges import MIN_DISTANCE, rows, squared_lengths
from equipot.data.neighbors import neighbor_list
from equipot.deploy.load import DeployedModel
from equipot.errors import DataError, SimulationError
from equipot.integrations.verlet import Edges


@dataclass(frozen=True)
class Pack:
    """S structures with N atoms, one after the other. Arrays are float64 but for the last three."""

    positions: NDArray  # (N, 3) Å
    cells: NDArray  # (S, 3, 3) Å, rows are lattice vectors
    pbc: NDArray  # (S, 3) bool
    types: NDArray  # (N,) int64, of the model's species
    counts: NDArray  # (S,) int64, atoms of each

    @property
    def starts(self) -> NDArray:
        """(S,) the first atom of each."""
        return np.cumsum(self.counts) - self.counts


@dataclass(frozen=True)
class Evaluated:
    """What the model says of a pack; NaN where ``problems`` (by number of the structure) says why."""

    energies: NDArray  # (S,) eV
    forces: NDArray  # (N, 3) eV/Å
    virials: NDArray  # (S, 3, 3) eV; the stress is -virial / volume
    problems: dict[int, str]


@dataclass
class _Built:
    """The list of one structure, and the geometry it was built for."""

    positions: NDArray
    cell: NDArray
    inverse: NDArray  # of the cell; zero where it has no volume: the list then holds for this cell alone
    pbc: NDArray
    edge_index: NDArray
    shifts: NDArray  # (K, 3) float64, the different ones
    which: NDArray  # (E,) the shift of each edge


class PackedList:
    """Edges shorter than ``cutoff`` (Å) of packs whose structures come, move in small steps, and go.

    ``skin`` (Å) is what the lists reach beyond the cutoff; one is built again only when atoms or cell of its
    structure have moved too far. `builds` counts these.
    """

    def __init__(self, cutoff: float, skin: float = 0.5):
        self.cutoff, self.skin = cutoff, skin
        self.builds = 0
        self._built: dict[Hashable, _Built] = {}
        self._keys: list[Hashable] = []

    def edges(self, pack: Pack, keys: Sequence[Hashable] | None = None) -> Edges:
        """Of all structures, whose atoms are counted through, sorted by center.

        ``keys`` tell structures of different packs apart; by default their places do.

        Raises:
            DataError: as `neighbor_list`.
        """
        keys = list(range(len(pack.counts)) if keys is None else keys)
        joined = keys == self._keys
        built = {key: self._built[key] for key in keys if key in self._built}
        fresh = self._complete(pack, keys, built) if joined else None
        for place, key in enumerate(keys):
            atoms = slice(start := pack.starts[place], start + pack.counts[place])
            geometry = pack.positions[atoms], pack.cells[place], pack.pbc[place]
            known = key in built and (fresh[place] if joined else self._holds(built[key], *geometry))
            if not known:
                built[key], joined = self._build(*geometry), False
        self._built = built
        if not joined:
            self._join(pack, keys)
        shifts = np.einsum("ka,kab->kb", self._shifts, pack.cells.take(self._of_shift, axis=0))
        edge_vec = rows(pack.positions, self._index[1])
        edge_vec += rows(shifts, self._which)
        edge_vec -= rows(pack.positions, self._index[0])
        squared = squared_lengths(edge_vec)
        inside = np.flatnonzero(squared < self.cutoff**2)
        order = np.arange(len(pack.positions))
        index = rows(self._index, inside, axis=1)
        return Edges(rows(edge_vec, inside), index, rows(squared, inside), order, order)

    def num_edges(self, key: Hashable) -> int:
        """That the list of a structure holds, those of the skin too; it was in the last pack."""
        return len(self._built[key].which)

    def _build(self, positions: NDArray, cell: NDArray, pbc: NDArray) -> _Built:
        self.builds += 1
        index, shift = neighbor_list(positions, cell, pbc, self.cutoff + self.skin)
        numbers = shift - shift.min(axis=0, initial=0)
        sizes = numbers.max(axis=0, initial=0) + 1
        number = np.ravel_multi_index(tuple(numbers.T), tuple(sizes))
        _, first, which = np.unique(number, return_index=True, return_inverse=True)
        inverse = np.linalg.inv(cell) if abs(np.linalg.det(cell)) > 1e-6 else np.zeros((3, 3))
        given = positions.copy(), cell.copy(), inverse, pbc.copy()
        return _Built(*given, index, shift[first].astype(np.float64), which)

    def _join(self, pack: Pack, keys: list[Hashable]) -> None:
        """Put the lists side by side."""
        built = [self._built[key] for key in keys]
        num_shifts = np.array([len(one.shifts) for one in built])
        first_shift = np.cumsum(num_shifts) - num_shifts
        self._index = np.concatenate(
            [one.edge_index + start for one, start in zip(built, pack.starts, strict=True)], axis=1
        )
        self._which = np.concatenate(
            [one.which + start for one, start in zip(built, first_shift, strict=True)]
        )
        self._shifts = np.concatenate([one.shifts for one in built])
        self._of_shift = np.repeat(np.arange(len(keys)), num_shifts)
        self._keys = keys

    def _holds(self, built: _Built, positions: NDArray, cell: NDArray, pbc: NDArray) -> bool:
        if len(positions) != len(built.positions):
            return False
        one = Pack(positions, cell[None], pbc[None], np.empty(0), np.array([len(positions)]))
        return bool(self._complete(one, [0], {0: built})[0])

    def _complete(self, pack: Pack, keys: list[Hashable], built: dict[Hashable, _Built]) -> NDArray:
        """(S,) whether no pair outside a list can have come within the cutoff; see `VerletList`.

        The smallest singular value of a deformation D is at least 1 − |D − 1|.
        """
        known = [built[key] for key in keys]
        if [len(one.positions) for one in known] != pack.counts.tolist() or self.skin <= 0:
            return np.array([len(one.positions) for one in known]) == -1
        before, cells = (
            np.concatenate([one.positions for one in known]),
            np.stack([one.cell for one in known]),
        )
        inverse, pbc = np.stack([one.inverse for one in known]), np.stack([one.pbc for one in known])
        change = inverse @ (pack.cells - cells)  # D − 1
        shrink = 1.0 - np.sqrt((change**2).sum(axis=(1, 2)))
        of_atom = np.repeat(np.arange(len(keys)), pack.counts)
        moved = pack.positions - before - np.einsum("na,nab->nb", before, change[of_atom])
        largest = np.sqrt(np.maximum.reduceat((moved**2).sum(axis=1), pack.starts))
        reach = shrink * (self.cutoff + self.skin) - 2.0 * largest
        turned = (pack.cells != cells).any(axis=(1, 2)) & ~inverse.any(axis=(1, 2))
        return (reach > self.cutoff + 1e-9) & (pbc == pack.pbc).all(axis=1) & ~turned


class PackedModel:
    """A deployed model, or an ensemble whose mean counts, for packs; `edges` are those of the last one."""

    def __init__(self, members: Sequence[DeployedModel], skin: float = 0.5):
        self.members = members
        self.neighbors = PackedList(members[0].metadata.cutoff, skin)
        self.edges: Edges | None = None

    def evaluate(self, pack: Pack, keys: Sequence[Hashable] | None = None) -> Evaluated:
        """In one call of each model. Where that fails, for the structures it fails for.

        Raises:
            DataError: a structure that has no neighbor list.
        """
        self.edges = edges = self.neighbors.edges(pack, keys)
        problems: dict[int, str] = {}
        of_atom = np.repeat(np.arange(len(pack.counts)), pack.counts)
        for edge in np.flatnonzero(edges.squared < MIN_DISTANCE**2):
            structure = int(of_atom[edges.index[0, edge]])
            pair = edges.index[:, edge] - pack.starts[structure]
            apart = f"{np.sqrt(edges.squared[edge]):.4f} Å apart"
            problems.setdefault(structure, f"atoms {pair[0]} and {pair[1]} are {apart}")
        wanted = np.ones(len(pack.counts), bool)
        wanted[list(problems)] = False
        energies, forces, virials = self._by_halves(pack, edges, of_atom, wanted, problems)
        starts = pack.starts
        sums = np.add.reduceat(energies, starts), np.add.reduceat(virials, starts)
        return Evaluated(sums[0], forces, sums[1], problems)

    def _by_halves(self, pack, edges, of_atom, wanted, problems) -> tuple[NDArray, NDArray, NDArray]:
        """Rows of all atoms, NaN where structures are not ``wanted`` or have a problem, which is noted."""
        try:
            return self._rows(pack, edges, of_atom, wanted)
        except (DataError, SimulationError) as error:
            found = np.flatnonzero(wanted)
            if len(found) == 1:
                problems[int(found[0])] = str(error).splitlines()[0].rstrip(".")
                return self._rows(pack, edges, of_atom, np.zeros_like(wanted))
        halves = []
        for part in np.array_split(found, 2):
            mask = np.zeros_like(wanted)
            mask[part] = True
            halves.append(self._by_halves(pack, edges, of_atom, mask, problems))
        return tuple(np.where(np.isnan(one), other, one) for one, other in zip(*halves, strict=True))

    def _rows(self, pack, edges, of_atom, wanted) -> tuple[NDArray, NDArray, NDArray]:
        shapes = (), (3,), (3, 3)
        if not wanted.any():
            return tuple(np.full((len(of_atom), *shape), np.nan) for shape in shapes)
        inputs = edges.vec, edges.index, pack.types, np.ones(len(pack.types), bool)
        if wanted.all():
            return self._mean(inputs)
        atoms = np.flatnonzero(wanted[of_atom])
        place = np.cumsum(wanted[of_atom]) - 1
        chosen = np.flatnonzero(wanted[of_atom[edges.index[0]]])
        parts = edges.vec[chosen], place[edges.index[:, chosen]], pack.types[atoms], inputs[3][atoms]
        found = []
        for rows_of, shape in zip(self._mean(parts), shapes, strict=True):
            whole = np.full((len(of_atom), *shape), np.nan)
            whole[atoms] = rows_of
            found.append(whole)
        return tuple(found)

    def _mean(self, inputs: tuple[NDArray, ...]) -> tuple[NDArray, NDArray, NDArray]:
        # Other outputs are not asked for.
        each = [member(*inputs, derivatives=False)[:3] for member in self.members]
        found = each[0] if len(each) == 1 else tuple(np.mean(one, axis=0) for one in zip(*each, strict=True))
        if not all(np.isfinite(values.sum()) for values in found):
            raise SimulationError("the model's results are not finite")
        return found
