"""Structures on their way to a minimum, all of them in each evaluation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import block_diag, eye_array
from scipy.sparse.linalg import cg

from equipot.integrations.distances import DistanceWatch
from equipot.integrations.model_hessian import STRAINS, model_hessian
from equipot.integrations.packed import Evaluated, Pack, PackedModel
from equipot.integrations.relax_optimizers import OPTIMIZERS
from equipot.integrations.relax_settings import RelaxSettings
from equipot.integrations.verlet import Edges
from equipot.units import GPA

_LENGTH = 2.5  # Å; times √N, it makes a strain about as stiff as the position of an atom
_MANY = 200  # atoms, of which the Hessian is not inverted
_DENSITY = 0.1  # atoms/Å³ where there is no volume
_MAX_CHANGE = 4.0  # of a volume, either way


@dataclass(eq=False)
class Task:
    """A structure that is relaxed, as it is now. N atoms."""

    number: int  # in the input
    types: NDArray  # (N,) int64
    radii: NDArray  # (N,) Å, covalent
    positions: NDArray  # (N, 3) Å
    cell: NDArray  # (3, 3) Å
    pbc: NDArray  # (3,)
    free: NDArray | None = None  # (N, 3, 3) onto the directions in which each atom may move; None: all
    steps: int = 0
    state: str = "running"  # then "converged", "unconverged" (after all steps) or "failed", for ``problem``
    problem: str = ""
    energy: float = np.nan  # eV
    energy_before: float = np.nan
    volume_before: float = np.nan  # Å³
    forces: NDArray | None = None  # (N, 3) eV/Å, of the model
    virial: NDArray | None = None  # (3, 3) eV
    largest_force: float = np.nan  # eV/Å, along directions that are free
    largest_stress: float = np.nan  # eV/Å³, of what the cell still follows
    first_cell: NDArray | None = field(default=None, repr=False)  # at the start
    x: NDArray | None = field(default=None, repr=False)  # (N + 2, 3) Å: positions and strain, see `Batch`
    solve: Callable | None = field(default=None, repr=False)  # a step for a gradient
    fresh: bool = True  # not evaluated since it is in a batch
    alone: int = -1  # atoms without neighbors at the start; -1: not known yet
    closer: str = ""  # at the end: atoms closer than any in the training set

    @property
    def volume(self) -> float:
        return float(abs(np.linalg.det(self.cell)))

    def estimate(self, reach: float) -> float:
        """About how many edges shorter than ``reach`` (Å) it has."""
        size = len(self.types)
        within = 4.19 * reach**3 * (size / self.volume if self.pbc.all() else _DENSITY)
        return size * (within if self.pbc.any() else min(within, size - 1))


class Batch:
    """Tasks in one evaluation: `change` lets them in and out, `step` moves them all.

    With u the positions in the cell as it was and F = 1 + ε, symmetric, positions are u F and the cell is
    that of the start times F. A task's rows are u (N, 3) and w ε (2, 3), of six numbers whose squares add up
    to |w ε|². The gradient is exact in these; a strain never turns the cell.
    """

    def __init__(self, model: PackedModel, settings: RelaxSettings):
        self.model, self.settings = model, settings
        self.optimizer = OPTIMIZERS[settings.optimizer]()
        self.tasks: list[Task] = []
        self.x = np.zeros((0, 3))
        self.watch = DistanceWatch([member.metadata for member in model.members])
        self._strains = strain_projector(settings)

    def change(self, keep: Sequence[bool], new: Sequence[Task]) -> None:
        """Go on with those to ``keep``, and with ``new`` ones."""
        for task, x in zip(self.tasks, np.split(self.x, self.optimizer.counts.cumsum()[:-1]), strict=False):
            task.x = x
        for task in new:
            task.fresh = True
            task.first_cell, task.x = task.cell, np.concatenate([task.positions, np.zeros((2, 3))])
        for task, kept in zip(self.tasks, keep, strict=True):
            if not kept:
                task.solve = task.x = None
        tasks = [task for task, kept in zip(self.tasks, keep, strict=True) if kept]
        self.tasks = tasks = [*tasks, *new]
        self.optimizer.change(np.array(keep, bool), np.array([len(task.x) for task in new], np.int64))
        if not tasks:
            return
        counts = np.array([len(task.types) for task in tasks])
        self.x = np.concatenate([task.x for task in tasks])
        last = np.cumsum(counts + 2)
        self._strain_rows = np.stack([last - 2, last - 1], axis=1)
        self._atom_rows = np.setdiff1d(np.arange(len(self.x)), self._strain_rows)
        self._of_atom = np.repeat(np.arange(len(tasks)), counts)
        self._lengths = _LENGTH * np.sqrt(counts)[:, None]
        self._cells = np.stack([task.first_cell for task in tasks])
        pbc, types = np.stack([task.pbc for task in tasks]), np.concatenate([task.types for task in tasks])
        self._fixed = pbc, types, counts
        self._free = None
        if any(task.free is not None for task in tasks):
            whole = [np.broadcast_to(np.eye(3), (n, 3, 3)) for n in counts]
            self._free = np.concatenate(
                [w if t.free is None else t.free for t, w in zip(tasks, whole, strict=True)]
            )

    def step(self) -> list[bool]:
        """Evaluate, and move those that are still running; whether each is."""
        x, strained = self.x, self._deformations()
        of_atom = strained[self._of_atom]
        positions = np.einsum("na,nab->nb", x[self._atom_rows], of_atom)
        cells = self._cells @ strained
        pbc, types, counts = self._fixed
        pack = Pack(positions, cells, pbc, types, counts)
        found = self.model.evaluate(pack, [task.number for task in self.tasks])

        # ∂E/∂u = −f F; at fixed u, ∂E/∂F = F⁻¹ W, where W is the derivative by a strain of what is there now.
        volumes, inverse = abs(np.linalg.det(cells)), np.linalg.inv(strained)
        pressure = self.settings.pressure * GPA
        work = (pressure * volumes)[:, None, None] * np.eye(3) - found.virials
        pull, forces = -np.einsum("na,nab->nb", found.forces, of_atom), found.forces
        if self._free is not None:
            pull = np.einsum("nab,nb->na", self._free, pull)
            forces = -np.einsum("na,nab->nb", pull, inverse[self._of_atom])
        gradient = np.empty_like(x)
        gradient[self._atom_rows] = pull
        strains = self._allowed(inverse @ work, inverse) / self._lengths
        gradient[self._strain_rows] = strains.reshape(-1, 2, 3)
        left = _matrices(self._allowed(work, np.broadcast_to(np.eye(3), work.shape)))
        stress = abs(left).max(axis=(1, 2)) / np.where(volumes > 0, volumes, 1.0)
        force = np.sqrt(np.maximum.reduceat((forces**2).sum(axis=1), pack.starts))
        self._note(pack, found, force, stress)
        running = [task.state == "running" for task in self.tasks]
        if any(running):
            with np.errstate(invalid="ignore", over="ignore"):  # of those that failed, which leave
                energies = found.energies + pressure * volumes
                self.x = self.optimizer.next(x, energies, gradient, self._solve)
            if self.settings.constant_volume:
                self._keep_volume()
        return running

    def _note(self, pack: Pack, found: Evaluated, force: NDArray, stress: NDArray) -> None:
        """What became of each task."""
        settings, edges = self.settings, self.model.edges
        alone = np.bincount(edges.index[0], minlength=len(pack.types)) == 0
        for place, (task, start, count) in enumerate(zip(self.tasks, pack.starts, pack.counts, strict=True)):
            atoms = slice(start, start + count)
            if task.alone < 0:
                task.energy_before, task.volume_before = float(found.energies[place]), task.volume
                task.alone = int(alone[atoms].sum())
            task.steps += not task.fresh
            task.fresh = False
            task.positions, task.cell = pack.positions[atoms], pack.cells[place]
            task.energy, task.forces, task.virial = (
                float(found.energies[place]), found.forces[atoms], found.virials[place]
            )  # fmt: skip
            task.largest_force, task.largest_stress = float(force[place]), float(stress[place])
            task.problem = found.problems.get(place, "") or self._problem(task, alone[atoms])
            if task.problem:
                task.state = "failed"
            elif force[place] < settings.force and stress[place] < settings.stress * GPA:
                task.state = "converged"
            elif task.steps >= settings.steps:
                task.state = "unconverged"
            if task.state != "running" and place not in found.problems and self.watch.shortest:
                task.closer = self._closer(place)

    def _closer(self, place: int) -> str:
        """Which atoms are closer than any in the training set."""
        index, vec, squared, size = self._edges_of(place)
        order = np.arange(size)
        edges = Edges(vec, index, squared, order, order)
        return "; ".join(map(str, self.watch.renewed().find(edges, self.tasks[place].types)))

    def _edges_of(self, place: int) -> tuple[NDArray, NDArray, NDArray, int]:
        """Of one task: centers and neighbors (2, E), vectors (E, 3), squared lengths (E,); how many atoms."""
        edges, size = self.model.edges, len(self.tasks[place].types)
        first = int(np.searchsorted(self._of_atom, place))
        own = slice(*np.searchsorted(edges.index[0], [first, first + size]))
        return edges.index[:, own] - first, edges.vec[own], edges.squared[own], size

    def _problem(self, task: Task, alone: NDArray) -> str:
        if alone.sum() > task.alone:
            atom, cutoff = int(np.flatnonzero(alone)[-1]), self.model.neighbors.cutoff
            return f"it runs apart: atom {atom} has no neighbor within {cutoff:g} Å any more"
        change = task.volume / task.volume_before if task.volume_before else 1.0
        if not 1 / _MAX_CHANGE < change < _MAX_CHANGE:
            return f"its volume is {change:.3g} times what it was"
        return ""

    def _deformations(self) -> NDArray:
        """(S, 3, 3) F."""
        return np.eye(3) + _matrices(self.x[self._strain_rows].reshape(-1, 6) / self._lengths)

    def _keep_volume(self) -> None:
        """Scale F in the directions that are free, so that its determinant is 1."""
        free = np.array(self.settings.mask or (1, 1, 1))
        strained = self._deformations()
        scale = np.linalg.det(strained)[:, None] ** (-free / (2.0 * free.sum()))
        vectors = _vectors(scale[:, :, None] * strained * scale[:, None, :] - np.eye(3))
        self.x[self._strain_rows] = (vectors * self._lengths).reshape(-1, 2, 3)

    def _allowed(self, matrices: NDArray, normals: NDArray) -> NDArray:
        """(S, 6): of (S, 3, 3) what the cell may follow; ``normals``: of surfaces of constant volume."""
        vectors = _vectors(matrices) @ self._strains
        if self.settings.constant_volume:
            normal = _vectors(normals) @ self._strains
            along = (vectors * normal).sum(axis=1) / (normal * normal).sum(axis=1)
            vectors = vectors - along[:, None] * normal
        return vectors

    def _solve(self, gradient: NDArray) -> NDArray:
        """The step that the model Hessian suggests, with a sign."""
        steps = np.empty_like(gradient)
        for place, (task, start) in enumerate(zip(self.tasks, self.optimizer.starts, strict=True)):
            if task.solve is None:
                task.solve = self._solver(place)
            rows = slice(start, start + len(task.types) + 2)
            steps[rows] = task.solve(gradient[rows].ravel()).reshape(-1, 3)
        return steps

    def _solver(self, place: int) -> Callable[[NDArray], NDArray]:
        """By the model Hessian of a task, in directions that are free alone."""
        task = self.tasks[place]
        index, vec, _, size = self._edges_of(place)
        hessian = model_hessian(vec, index, task.radii, float(self._lengths[place, 0]))
        if task.free is not None or (self._strains != np.eye(6)).any():
            free = np.broadcast_to(np.eye(3), (size, 3, 3)) if task.free is None else task.free
            allowed = block_diag([*free, self._strains], format="csr")
            hessian = allowed @ hessian @ allowed + eye_array(3 * size + 6) - allowed
        if size > _MANY:  # a gradient has nothing in other directions
            return lambda gradient: cg(hessian, gradient, rtol=1e-3)[0]
        return np.linalg.inv(hessian.toarray()).dot


def strain_projector(settings: RelaxSettings) -> NDArray:
    """(6, 6) onto the strains of `STRAINS` that the settings allow, but for those of constant volume."""
    if not settings.cell:
        return np.zeros((6, 6))
    if settings.hydrostatic:
        return np.outer(together := np.array([1, 1, 1, 0, 0, 0]), together) / 3.0
    free = np.array(settings.mask or (1, 1, 1), bool)
    return np.diag([float(free[strain.any(axis=0)].all()) for strain in STRAINS])


def _vectors(matrices: NDArray) -> NDArray:
    """(S, 3, 3) → (S, 6), along `STRAINS`."""
    return np.einsum("mab,sab->sm", STRAINS, matrices)


def _matrices(vectors: NDArray) -> NDArray:
    """(S, 6) → (S, 3, 3)."""
    return np.einsum("mab,sm->sab", STRAINS, vectors)
