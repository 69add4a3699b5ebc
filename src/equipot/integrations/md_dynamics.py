"""Integrators by ASE, what they conserve, the constraints they keep, and their state for a restart."""

import warnings
from collections.abc import Iterator
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.md.bussi import Bussi
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.md import MolecularDynamics
from ase.md.nose_hoover_chain import (
    IsotropicMTKNPT,
    MaskedMTKNPT,
    NoseHooverChainNVT,
    NoseHooverChainThermostat,
)
from ase.md.verlet import VelocityVerlet
from numpy.typing import NDArray

from equipot.errors import ConfigError, DataError
from equipot.integrations.md_settings import MDSettings

_BAROSTAT_TIME = 1000.0  # fs; slow against the vibrations, fast against a usual run

# Constraints by what it takes to keep them. Some fix an atom's coordinates, which may scale with a cell;
_FIXED = {"FixAtoms", "FixCartesian", "FixScaled"}
# those of momenta are all that linear ones need;
_LINEAR = _FIXED | {"FixedPlane", "FixedLine", "FixCom", "FixSubsetCom"}
# others need an integrator with RATTLE;
RIGID = {"FixBondLengths", "FixLinearTriatomic"}
# and some are forces.
_FORCES = {"Hookean", "ExternalForce"}


def check_constraints(atoms: Atoms, settings: MDSettings) -> None:
    """Raise DataError for constraints that the integrator does not keep."""
    kept = {
        ("nve", "langevin"): _LINEAR | RIGID | _FORCES,
        ("nvt", "csvr"): _LINEAR | RIGID | _FORCES,
        ("nvt", "langevin"): _LINEAR | _FORCES,
        ("nvt", "nose-hoover"): _LINEAR | _FORCES,
        ("npt", "langevin"): _FIXED,
        ("npt", "nose-hoover"): set(),
    }[settings.ensemble, "langevin" if settings.ensemble == "nve" else settings.thermostat]
    names = {_name(constraint) for constraint in atoms.constraints}
    if names - kept:
        how = settings.ensemble + ("" if settings.ensemble == "nve" else f" with {settings.thermostat}")
        able = f"it keeps {', '.join(sorted(kept))}" if kept else "it keeps none"
        raise DataError(
            f"The structure has constraints of the kind {', '.join(sorted(names - kept))}, which {how} "
            f"does not keep ({able}). Remove them, or choose another --ensemble or --thermostat."
        )
    taken = [constraint for constraint in atoms.constraints if _name(constraint) not in _FORCES]
    indices = [np.arange(len(atoms)) if _name(c) == "FixCom" else np.unique(c.get_indices()) for c in taken]
    counts = np.bincount(np.concatenate(indices), minlength=len(atoms)) if indices else np.zeros(1)
    if counts.max() > 1:
        raise DataError(
            f"Atom {int(counts.argmax())} is in more than one constraint ({', '.join(sorted(names))}): "
            "degrees of freedom cannot be counted. Join them into one."
        )
    for constraint in taken:
        if _name(constraint) in _LINEAR and not _moves_as_it_says(constraint, atoms):
            raise DataError(
                f"{_name(constraint)} fixes directions of a cell whose vectors are not at right angles, "
                "which ASE keeps for positions but not for momenta. Use FixCartesian."
            )


def _name(constraint) -> str:
    return type(constraint).__name__


def _moves_as_it_says(constraint, atoms: Atoms) -> bool:
    """Whether velocities that the constraint allows lead to positions that it allows."""
    velocities = np.random.default_rng(0).standard_normal((len(atoms), 3))
    momenta = velocities * atoms.get_masses()[:, None]
    constraint.adjust_momenta(atoms, momenta)
    moved = atoms.positions + velocities
    constraint.adjust_positions(atoms, moved)
    return np.allclose(momenta / atoms.get_masses()[:, None], moved - atoms.positions, atol=1e-9)


def _conserved_motions(atoms: Atoms) -> NDArray[np.float64]:
    """(3N, k), orthonormal, of √mass · velocity: motions that neither forces nor constraints change.

    Translations and, where no direction is periodic, rotations; of these, combinations that the constraints
    allow: such as rotations about the one atom that is fixed.
    """
    if {_name(constraint) for constraint in atoms.constraints} & _FORCES:
        return np.zeros((3 * len(atoms), 0))
    root = np.sqrt(atoms.get_masses())[:, None]
    axes = np.eye(3)
    motions = [np.broadcast_to(axis, atoms.positions.shape) for axis in axes]
    if not atoms.pbc.any():
        motions += [np.cross(axis, atoms.positions - atoms.get_center_of_mass()) for axis in axes]
    stopped = []
    for motion in motions:
        momenta = motion * root**2
        for constraint in atoms.constraints:
            constraint.adjust_momenta(atoms, momenta)
        stopped.append((momenta / root - motion * root).ravel())
    weighted = np.stack([(motion * root).ravel() for motion in motions], axis=1)
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    _, sizes, combinations = np.linalg.svd(np.stack(stopped, axis=1) / scale, full_matrices=False)
    allowed = (weighted / scale) @ combinations[sizes < 1e-6].T
    basis, sizes, _ = np.linalg.svd(allowed, full_matrices=False)
    return basis[:, sizes > 1e-3]  # about its own axis, a linear molecule has no rotation


def _along(motions: NDArray, atoms: Atoms) -> NDArray[np.float64]:
    """(k,) how much of each motion the momenta have; half of the squares is their kinetic energy."""
    return motions.T @ (atoms.get_momenta() / np.sqrt(atoms.get_masses())[:, None]).ravel()


def degrees_of_freedom(atoms: Atoms, ensemble: str, thermostat: str = "langevin") -> int:
    """How many momenta are free: without constraints all for Langevin.

    The others keep the total momentum and, without pbc, its moment: these count only if they are not zero.
    """
    free = atoms.get_number_of_degrees_of_freedom()
    if ensemble != "nve" and thermostat == "langevin":
        return free
    motions = _conserved_motions(atoms)
    drift = 0.5 * np.sum(_along(motions, atoms) ** 2)
    return free if drift > 1e-6 * max(atoms.get_kinetic_energy(), 1e-30) else free - motions.shape[1]


def set_velocities(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> str:
    """Keep the structure's momenta, or draw Maxwell-Boltzmann's; one line that says which.

    Raises:
        ConfigError: momenta are to be kept, and there are none.
    """
    moving = bool(atoms.get_momenta().any())
    if settings.velocities == "keep" and not atoms.has("momenta"):
        raise ConfigError("--velocities keep: the structure has none. Leave the option out to draw them.")
    if settings.velocities == "keep" or (settings.velocities is None and moving):
        atoms.set_momenta(atoms.get_momenta())  # those of fixed atoms become zero
        freedom = degrees_of_freedom(atoms, settings.ensemble, settings.thermostat)
        temperature = 2.0 * atoms.get_kinetic_energy() / (max(freedom, 1) * ase.units.kB)
        return f"Velocities of the structure are kept ({temperature:.0f} K)."
    reason = " (those of the structure are zero)" if atoms.has("momenta") and not moving else ""
    masses = atoms.get_masses()[:, None]
    thermal = np.sqrt(masses * ase.units.kB * settings.temperature)
    atoms.set_momenta(thermal * rng.standard_normal((len(atoms), 3)))
    if settings.conserves_momentum:
        motions = _conserved_motions(atoms)
        shared = (motions @ _along(motions, atoms)).reshape(-1, 3)
        atoms.set_momenta(atoms.get_momenta() - np.sqrt(masses) * shared)
    return f"Velocities are drawn for {settings.temperature:g} K{reason}."


def make_integrator(atoms: Atoms, settings: MDSettings, rng: np.random.Generator) -> MolecularDynamics:
    """Of atoms with momenta and a calculator. Raises ConfigError if there is nothing for it to do."""
    timestep, damping = settings.timestep * ase.units.fs, ase.units.fs / settings.friction
    freedom = degrees_of_freedom(atoms, settings.ensemble, settings.thermostat)
    if freedom < 1:
        raise ConfigError("Nothing is free to move: the constraints leave no degree of freedom.")
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    if settings.thermostat == "csvr":
        return _csvr(atoms, timestep, settings.temperature, damping, rng, freedom)
    pressure = settings.pressure * ase.units.GPa
    slow = max(_BAROSTAT_TIME, 20.0 / settings.friction) * ase.units.fs
    if settings.thermostat == "nose-hoover":
        common = {"temperature_K": settings.temperature, "tdamp": damping}
        if settings.ensemble == "nvt":
            dynamics = _Chains(atoms, timestep, **common)
        else:
            common |= {"pressure_au": pressure, "pdamp": slow}
            dynamics = (
                IsotropicMTKNPT(atoms, timestep, **common)
                if settings.mask is None
                else _MaskedMTK(atoms, timestep, mask=np.array(settings.mask, dtype=bool), **common)
            )
        _count_freedom(dynamics, freedom, **{k: common[k] for k in ("temperature_K", "tdamp")})
        return dynamics
    options: dict[str, Any] = {"temperature_K": settings.temperature, "T_tau": damping, "rng": rng}
    if settings.ensemble == "npt":
        options |= {"externalstress": -pressure, "hydrostatic": settings.mask is None, "P_tau": slow}
    with warnings.catch_warnings():
        # The barostat's mass follows from P_tau by ASE's rule; it warns of that each time.
        warnings.filterwarnings("ignore", message="Using heuristic P_mass|.*tested with constraints")
        if settings.mask is not None:
            return _MaskedLangevin(atoms, timestep, mask=np.diag(settings.mask), **options)
        return LangevinBAOAB(atoms, timestep, **options)


def _csvr(atoms: Atoms, timestep: float, temperature: float, damping: float, rng, freedom: int) -> Bussi:
    if atoms.get_kinetic_energy() < 1e-12:
        raise ConfigError("csvr scales velocities, but all are zero. Give --velocities draw.")
    dynamics = Bussi(atoms, timestep, temperature, damping, rng=rng)
    dynamics.ndof = freedom
    dynamics.target_kinetic_energy = 0.5 * freedom * ase.units.kB * temperature
    return dynamics


def _count_freedom(dynamics: MolecularDynamics, freedom: int, **thermostat: float) -> None:
    """ASE takes 3 degrees of freedom for every atom: a third of them is the number of atoms to tell it."""
    atoms = freedom / 3.0
    dynamics._thermostat = NoseHooverChainThermostat(atoms, dynamics.masses, **thermostat)
    dynamics._num_atoms_global = atoms


class _Chains(NoseHooverChainNVT):
    """With constraints, which ASE's applies to the atoms but not to its own momenta."""

    def _get_forces(self) -> NDArray:
        self._update_atoms()
        return self.atoms.get_forces()


class _MaskedMTK(MaskedMTKNPT):
    """Stretches along x, y and z rather than along lattice vectors."""

    def _init_cell_momenta(self) -> None:
        super()._init_cell_momenta()
        self._h0_basis = np.eye(3)


class _MaskedLangevin(LangevinBAOAB):
    """With a cell that stretches along x, y and z where ``mask`` (3, 3) is 1."""

    def __init__(self, *arguments, mask: NDArray, **options):
        self.mask = mask
        super().__init__(*arguments, **options)

    def _update_force_eps(self) -> None:
        super()._update_force_eps()
        self.force_eps = self.force_eps * self.mask

    def _barostat_BAOAB_OU(self) -> None:
        super()._barostat_BAOAB_OU()
        self.p_eps = self.p_eps * self.mask

    def _barostat_BAOAB_OU_gamma_mod(self) -> NDArray:
        # ASE's adds the trace to every element, not to the diagonal.
        return (self.p_eps + np.trace(self.p_eps * self.mask) / self.Ndof * np.eye(3)) / self.barostat_mass


def state_of(dynamics: MolecularDynamics) -> dict[str, NDArray]:
    """All numbers that an integrator and its thermostat and barostat hold, by name."""
    return {name: np.asarray(getattr(owner, key)) for name, owner, key in _numbers(dynamics)}


def set_state(dynamics: MolecularDynamics, state: dict[str, NDArray]) -> None:
    """Inverse of `state_of`, for an integrator made with the same settings. Raises KeyError."""
    for name, owner, key in list(_numbers(dynamics)):
        value = state[name]
        setattr(owner, key, value.item() if value.ndim == 0 else value.copy())


def _numbers(owner: object, prefix: str = "") -> Iterator[tuple[str, object, str]]:
    for key, value in vars(owner).items():
        if isinstance(value, int | float | np.number | np.ndarray):
            yield prefix + key, owner, key
        elif type(value).__module__.startswith("ase.md."):
            yield from _numbers(value, f"{prefix}{key}.")
