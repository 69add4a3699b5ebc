"""Is a deployed model right here? Reference structures, symmetries, smoothness, energy conservation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import torch
import yaml
from ase.data import atomic_masses, atomic_numbers
from e3nn.o3 import Irreps
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.table import Column, Table
from rich.text import Text
from scipy.spatial.transform import Rotation

from equipot.deploy.capsule import Capsule, Deviation
from equipot.deploy.load import DeployedModel, load_deployed
from equipot.deploy.structure import ModelRows, Structure, evaluate, evaluate_edges
from equipot.deploy.torchscript import weights_digest
from equipot.errors import EquipotError
from equipot.quantities import CONTRACT, QUANTITIES

# Symmetries are exact up to rounding. Relative to the largest force, or to 1 eV/Å if that is larger; float64
# models reach 1e-12, float32 models 1e-6..1e-5, a model that breaks a symmetry is off by 1e-3 and more.
_SYMMETRY = {"float32": 1e-4, "float64": 1e-9}
# This far inside the cutoff (Å), and a tenth of it: what remains of an edge is extrapolated to the cutoff.
# An envelope with two vanishing derivatives has fallen to 1e-12 and its slope to 1e-8; X-PLOR's slope is 1e-3
# there, but falls linearly. One that jumps or kinks leaves 1e-4 and more. float32 adds its rounding.
_EDGE_MARGIN = 1e-4
_SMOOTHNESS = {"float32": 2e-5, "float64": 1e-6}
# meV/atom, what is left of the energy error after the time step's own error is extrapolated away.
_CONSERVATION = 0.1


@dataclass(frozen=True)
class CheckReport:
    """All checks of one file; ``error`` says why none or not all of them could run."""

    path: Path
    items: list[Deviation] = field(default_factory=list)
    error: str | None = None

    @property
    def passed(self) -> bool:
        return self.error is None and all(item.passed for item in self.items)

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        items = [vars(item) | {"passed": item.passed} for item in self.items]
        return {"file": str(self.path), "passed": self.passed, "error": self.error, "checks": items}

    def table(self) -> Table:
        """A rich table with one line per check."""
        sides = {"check": "left", "found": "right", "tolerated": "right", "": "left"}
        columns = [Column(name, justify=side, no_wrap=True) for name, side in sides.items()]
        title = f"{self.path}: {'passed' if self.passed else 'FAILED'}"
        table = Table(*columns, "remark", title=title, box=SIMPLE, padding=(0, 1, 0, 0))
        for item in self.items:
            verdict = Text("passed", "green") if item.passed else Text("FAILED", "bold red")
            numbers = [f"{number:.2g} {item.unit}".rstrip() for number in (item.value, item.tolerance)]
            table.add_row(item.name, *numbers, verdict, item.note)
        if self.error is not None:
            table.add_row("running the checks", "", "", Text("FAILED", "bold red"), self.error)
        return table


def check(
    path: str | Path, device: str = "auto", on_progress: Callable[[str], None] = lambda name: None
) -> CheckReport:
    """Check a deployed model; never raises for a bad model or file, the report says what is wrong.

    ``on_progress`` is called with the name of each group of checks before it runs.
    """
    path, items = Path(path), []
    try:
        on_progress("loading")
        model = load_deployed(path, device)
        capsule = Capsule.from_json(model.metadata.capsule)
        structures = [reference.structure for reference in capsule.references]
        for name, group in _GROUPS.items():
            on_progress(name)
            items += group(model, structures)
    except EquipotError as error:
        return CheckReport(path, items, str(error))
    except (RuntimeError, ValueError) as error:
        return CheckReport(path, items, f"{type(error).__name__}: {error}")
    return CheckReport(path, items)


def check_reference(model: DeployedModel, structures: list[Structure]) -> Iterator[Deviation]:
    """The weights are those that were deployed, and the capsule's structures give the stored results."""
    changed = weights_digest(model.module) != model.metadata.weights_sha256
    yield Deviation("weights changed", "", float(changed), 0.0, "SHA-256")
    note = f"{len(structures)} structures"
    for deviation in model.check_capsule():
        yield replace(deviation, name=f"reference {deviation.name}", note=note)
    if model.engine is not None:
        for deviation in replace(model, engine=None).check_capsule():
            yield replace(deviation, name=f"reference {deviation.name}", note="by TorchScript")
    differing = sum(not _same_edges(structure, model.metadata.cutoff) for structure in structures)
    yield Deviation("neighbor lists changed", "", differing, 0, note)


def check_symmetries(model: DeployedModel, structures: list[Structure]) -> Iterator[Deviation]:
    """Forces and virials turn with the structure, energies stay; renumbering atoms renumbers results.

    A model that ignores parity may tell mirror images apart.
    """
    relative = _SYMMETRY[model.metadata.dtype]
    rotation = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    config = yaml.safe_load(model.metadata.config) or {}
    errors = {"rotation": lambda s: _transformation_error(model, s, rotation)}
    if config.get("model", {}).get("parity") != "ignored":
        errors["inversion"] = lambda s: _transformation_error(model, s, -np.eye(3))
    errors["permutation"] = lambda s: _permutation_error(model, s)
    for name, error in errors.items():
        worst = max(error(structure) for structure in structures)
        yield Deviation(name, "", worst, relative, "relative")


def check_smoothness(model: DeployedModel, structures: list[Structure]) -> Iterator[Deviation]:
    """An edge that is about to pass the cutoff changes neither energy nor forces, nor outputs."""
    names = [*("atom_energies", "forces") * model.has_energy, *model.output_names]
    jumps = [_cutoff_jump(model, s, names) for s in structures if s.edge_index.shape[1] > 0]
    tolerance = _SMOOTHNESS[model.metadata.dtype]
    note = f"{_EDGE_MARGIN:g} Å inside"
    for column, name in enumerate(names):
        worst = max((jump[column] for jump in jumps), default=np.nan)
        yield Deviation(f"{CONTRACT[name].called} at the cutoff", "", worst, tolerance, note)


def check_conservation(
    model: DeployedModel, structures: list[Structure], duration: float = 20.0
) -> Iterator[Deviation]:
    """A short NVE run (fs) keeps its total energy.

    Velocity Verlet's own error is b·dt² at each time t, so runs with dt and dt/2 are extrapolated to
    dt → 0: e(t) = (4 e_{dt/2}(t) − e_dt(t)) / 3. What remains is force that is not the energy's gradient.
    """
    structure = next((s for s in structures if s.num_atoms > 1), None)
    if structure is None or not model.has_energy:
        return
    masses = _masses(model, structure)
    start = evaluate(model, structure)
    # Bad models have huge forces; moving at most 0.01 Å by force in a step keeps the series convergent.
    acceleration = float((np.abs(start.forces) / masses).max())
    timestep = min(0.5 * ase.units.fs, np.sqrt(0.02 / max(acceleration, 1e-12)))
    steps = max(10, min(round(duration * ase.units.fs / timestep), 100))
    coarse = _nve_energies(model, structure, masses, start, timestep, steps)
    fine = _nve_energies(model, structure, masses, start, timestep / 2, 2 * steps)[::2]
    raw = 1e3 * np.abs(coarse - coarse[0]).max() / structure.num_atoms
    extrapolated = (4.0 * (fine - fine[0]) - (coarse - coarse[0])) / 3.0
    left = 1e3 * float(np.abs(extrapolated).max()) / structure.num_atoms
    step = timestep / ase.units.fs
    note = f"NVE, {steps * step:.0f} fs"
    # A tenth of the integrator's error is about what its next order, dt⁴, leaves in a violent run.
    tolerated = max(_CONSERVATION, 0.1 * raw)
    yield Deviation("energy conservation", "meV/atom", left, tolerated, note)


def check_field(model: DeployedModel, structures: list[Structure]) -> Iterator[Deviation]:
    """Derivatives by an electric field: −∂E/∂F is the polarization, ∂P/∂F the polarizability.

    The energy is quadratic in the field, so differences over any interval are exact.
    """
    if not model.metadata.field:
        return
    worst = np.zeros(2)
    for structure in structures:
        _, *right = _in_field(model, structure, np.zeros(3))
        ends = [[_in_field(model, structure, sign * field) for sign in (1, -1)] for field in np.eye(3)]
        slopes = [np.array([0.5 * (plus[k] - minus[k]) for plus, minus in ends]) for k in (0, 1)]
        for k, (found, expected) in enumerate(zip((-slopes[0], slopes[1]), right, strict=True)):
            worst[k] = max(worst[k], np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))
    for name, error in zip(("energy", "polarization"), worst, strict=True):
        yield Deviation(f"{name} by the field", "", float(error), _SYMMETRY[model.metadata.dtype], "relative")


def _in_field(model: DeployedModel, structure: Structure, field: NDArray) -> tuple[float, NDArray, NDArray]:
    """Energy (eV), P (e Å) and α (e²Å²/eV) of a structure in a field (V/Å)."""
    types = structure.atom_types
    inputs = structure.edge_vec, structure.edge_index, types, types >= 0
    rows = model.rows(*inputs, field=field, derivatives=False)
    values = [unit * rows[name].sum(axis=0) for name, unit in model.metadata.field.items()]
    vector, tensor = [*values, np.zeros((3, 3))][:2]
    return rows["atom_energies"].sum(), vector, tensor


_GROUPS = {
    "reference structures": check_reference,
    "symmetries": check_symmetries,
    "smoothness at the cutoff": check_smoothness,
    "energy conservation": check_conservation,
    "electric field": check_field,
}


def _same_edges(structure: Structure, cutoff: float) -> bool:
    rebuilt = structure.moved(structure.positions, cutoff)
    return np.array_equal(rebuilt.edge_index, structure.edge_index) and np.array_equal(
        rebuilt.edge_shift, structure.edge_shift
    )


def _transformation_error(model: DeployedModel, structure: Structure, matrix: np.ndarray) -> float:
    """Compare f(R x) with R f(x) for an orthogonal matrix R."""
    before = evaluate(model, structure)
    after = evaluate_edges(model, structure.edge_vec @ matrix.T, structure.edge_index, structure.atom_types)
    return _difference(after, {name: transformed(name, rows, matrix) for name, rows in before.rows.items()})


def transformed(name: str, rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Rows of the contract under an orthogonal transformation of space."""
    about = CONTRACT[name]
    if about.irreps:
        return rows @ Irreps(about.irreps).D_from_matrix(torch.as_tensor(matrix)).numpy().T
    for axis in range(rows.ndim - about.rank, rows.ndim):
        rows = np.moveaxis(np.moveaxis(rows, axis, -1) @ matrix.T, -1, axis)
    return rows * np.linalg.det(matrix) if about.pseudo else rows


def _permutation_error(model: DeployedModel, structure: Structure) -> float:
    order = np.random.default_rng(0).permutation(structure.num_atoms)  # new atom a is old atom order[a]
    renumbered = np.argsort(order)[structure.edge_index]
    by_center = np.argsort(renumbered[0], kind="stable")
    before = evaluate(model, structure)
    edges, types = structure.edge_vec[by_center], structure.atom_types[order]
    after = evaluate_edges(model, edges, renumbered[:, by_center], types)
    return _difference(after, {name: rows[order] for name, rows in before.rows.items()})


def _difference(found: ModelRows, expected: dict[str, np.ndarray]) -> float:
    """Largest difference of any row, in units of the largest force or virial.

    Forces set the scale: energies contain reference energies, which say nothing of the interaction. Outputs
    beside energy and forces are in units of their own largest number.
    """
    largest = {name: float(np.abs(rows).max(initial=0.0)) for name, rows in expected.items()}
    scale = max(1.0, largest.get("forces", 0.0), largest.get("atom_virials", 0.0))
    for name in largest:
        largest[name] = max(1.0, largest[name]) if name in QUANTITIES and name != "forces" else scale
    return max(
        float(np.abs(found.rows[name] - rows).max()) / largest[name] for name, rows in expected.items()
    )


def _cutoff_jump(model: DeployedModel, structure: Structure, names: list[str]) -> NDArray:
    """What an edge at the cutoff contributes to rows ``names``, relative to their largest number.

    Forces set the scale of energies.
    """
    wide, narrow = (_edge_share(model, structure, names, m) for m in (_EDGE_MARGIN, _EDGE_MARGIN / 10))
    return np.abs(10 * narrow - wide) / 9


def _edge_share(model: DeployedModel, structure: Structure, names: list[str], margin: float) -> NDArray:
    """The same of an edge ``margin`` (Å) inside the cutoff.

    The structure is stretched so that one of its edges, or the longest distance of a small molecule, becomes
    that edge; then the model is evaluated with and without it.
    """
    cutoff = model.metadata.cutoff
    longest = np.linalg.norm(structure.edge_vec, axis=1).max()
    edge_vec = structure.edge_vec * ((cutoff - margin) / longest)
    full = evaluate_edges(model, edge_vec, structure.edge_index, structure.atom_types)
    kept = np.linalg.norm(edge_vec, axis=1) < cutoff - 2 * margin
    less = evaluate_edges(model, edge_vec[kept], structure.edge_index[:, kept], structure.atom_types)
    jumps = []
    for name in names:
        of = "forces" if name == "atom_energies" else name
        scale = max(1.0, float(np.abs(full.rows[of]).max()))
        jumps.append(float(np.abs(full.rows[name] - less.rows[name]).max()) / scale)
    return np.array(jumps)


def _nve_energies(
    model: DeployedModel, structure: Structure, masses, start: ModelRows, timestep: float, steps: int
) -> np.ndarray:
    """(steps + 1,) total energies (eV) of a velocity Verlet run from 300 K, seeded; ASE's units of time."""
    velocities = np.random.default_rng(0).normal(size=structure.positions.shape)
    velocities *= np.sqrt(300.0 * ase.units.kB / masses)
    result = start
    energies = [result.energy + 0.5 * float((masses * velocities**2).sum())]
    for _ in range(steps):
        velocities = velocities + 0.5 * timestep * result.forces / masses
        positions = structure.positions + timestep * velocities
        structure = structure.moved(positions, model.metadata.cutoff)
        result = evaluate(model, structure)
        velocities = velocities + 0.5 * timestep * result.forces / masses
        energies.append(result.energy + 0.5 * float((masses * velocities**2).sum()))
    return np.array(energies)


def _masses(model: DeployedModel, structure: Structure) -> np.ndarray:
    """(N, 1) atomic mass units."""
    table = np.array([atomic_masses[atomic_numbers[symbol]] for symbol in model.metadata.species])
    return table[structure.atom_types][:, None]
