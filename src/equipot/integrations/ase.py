"""The ASE calculator."""

import logging
import math
from collections.abc import Collection, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties, all_outputs
from numpy.typing import ArrayLike

from equipot.deploy.ensemble import deviation, load_members
from equipot.deploy.load import DeployedModel
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.integrations.distances import DistanceWatch, TooClose
from equipot.integrations.verlet import Array, EngineList, VerletList, as_array
from equipot.quantities import FIELD, QUANTITIES, of_structure
from equipot.units import compound_unit, stress_to_voigt

if TYPE_CHECKING:
    import torch

_STRESSES = {"stress", "stresses"}
_UNCERTAINTIES = ("energy_uncertainty", "energies_uncertainty")

log = logging.getLogger("equipot")


class EquipotCalculator(Calculator):
    """Energies (eV), forces (eV/Å) and stress (eV/Å³, ASE's sign and order) from a deployed model.

        from equipot import EquipotCalculator
        atoms.calc = EquipotCalculator("model.pt")

    Args:
        model: a file written by ``equipot deploy``, or a model from `load_deployed`; or an ensemble: a list
            of these, or the folder that ``equipot deploy`` has written.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1"; not used for a loaded model.
        skin: the neighbor list reaches this far (Å) beyond the cutoff and is reused until atoms have moved
            by half of it; 0 rebuilds it at every step. On a GPU at most 0.5.
        check: re-evaluate the reference structures in the file once, before the first use.
        engine: "auto": equipot's own on a CPU; "torch": TorchScript. Not used for a loaded model.
        energy: "total"; or "isolated": relative to what the model gives for each atom alone.
        field: (3,) V/Å, a uniform electric field, for models that know it (``model.field``); may be changed
            later, ``calc.field = [0, 0, 0.01]``, or None.
        derivatives: outputs that are derivatives by positions, as Born charges, are always computed, too, at
            the cost of three reverse passes each; False: only where `get_property` asks for one.
        label, atoms, directory: as for every ASE calculator.

    Raises:
        ConfigError: the skin is negative or not finite, or there is no such engine or energy; the field is no
            vector, or the model does not know it.
        ModelFileError, DeviceError: as `load_deployed`; or the file fails its check on this machine.
        UnknownSpeciesError: at the first use, for an element the model does not know.
        DataError: at a use, for no atoms, positions (heat flux: velocities, masses) that are not finite, and
            atoms closer than 0.1 Å.
        SimulationError: at a use, if the model's results are not finite.

    It can be pickled and copied, with its model, for processes (on a GPU started by ``spawn``) and threads.
    Each thread needs a calculator of its own; copies share the model.

    An ensemble gives the mean of its members, and in `results` their standard deviations: ``energy_std``
    (eV) and ``forces_std`` (eV/Å, one number for each atom: of vectors). Members with other energies of
    isolated atoms differ by these, too, unless energies are relative to them.

    A single model deployed with ``--uncertainty`` gives, by the engine only, standard deviations of its
    energies: ``energy_uncertainty`` (eV) and ``energies_uncertainty`` (eV, of each atom's). They do not add
    up: atoms alike err alike.

    In a field, energies, forces, stress and outputs are those there: with P the output ``polarization`` (or
    ``dipole``), E(r, F) = E(r) − P·F − ½ F·α·F, and P is its −∂E/∂F.
    Outputs are in their own units, but one called dipole in ASE's, e Å.
    Outputs that add up to a number of the structure, as charges do, take it from ``atoms.info`` (0 if it is
    not there); a dipole with charges exists only for structures that are not periodic.

    Stress exists only for structures that are periodic in all three directions. ``stresses`` are per atom
    and sum up to ``stress``.

    On request only, since it takes as long as several evaluations: ``calc.get_property("heat_flux", atoms)``
    (3,), eV Å per ASE's unit of time: J = Σ (U_i + m_i v_i²/2) v_i + Σ V_i v_i, not divided by the volume, of
    the velocities of ``atoms``; ``heat_virials`` are V (N, 3, 3) eV, whose second index is the velocity's.
    Source: Langer et al., Phys. Rev. B 108, L100302 (2023).
    """

    name = "equipot"
    implemented_properties: ClassVar[list[str]] = [
        "energy", "free_energy", "energies", "forces", "stress", "stresses", "heat_virials", "heat_flux",
    ]  # fmt: skip

    def __init__(
        self,
        model: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
        device: "str | torch.device" = "auto",
        skin: float = 0.5,
        check: bool = True,
        *,
        engine: str = "auto",
        energy: str = "total",
        field: ArrayLike | None = None,
        derivatives: bool = True,
        label: str | None = None,
        atoms: Atoms | None = None,
        directory: str | Path = ".",
    ):
        if not (math.isfinite(skin) and skin >= 0):
            raise ConfigError(f"skin must be a length of at least 0 Å, found {skin}.")
        if energy not in ("total", "isolated"):
            raise ConfigError(f"energy must be 'total' or 'isolated', found '{energy}'.")
        super().__init__(label=label, atoms=atoms, directory=directory)
        self.members = load_members(model, device, engine)
        self.model = self.members[0]
        if check:
            for member in self.members:
                member.require_capsule()
        self.neighbors = self._list(skin)
        self.distances = DistanceWatch([member.metadata for member in self.members])
        if energy == "isolated":
            self.model.require_energy("energy='isolated'")
        self._alone = [_energies_alone(member) for member in self.members] if energy == "isolated" else []
        self._types: tuple[np.ndarray, Array] | None = None
        basic = self.implemented_properties if self.model.has_energy else ()
        self.implemented_properties = [*basic, *self.model.output_names]
        self.field, self.derivatives = field, derivatives
        self._warned_of_field = False
        if self._gives_uncertainties:
            self.implemented_properties += _UNCERTAINTIES
        elif len(self.members) == 1 and self.model.metadata.uncertainty:
            log.warning(
                "%s: the uncertainty of its energies is not given, which takes the engine on a CPU; it runs "
                "on %s.", self.model.path, self.model.runs_by,
            )  # fmt: skip

    def _list(self, skin: float) -> VerletList:
        cutoff = self.model.metadata.cutoff
        if all(member.finds_edges for member in self.members):
            return EngineList(cutoff, skin)
        return VerletList(cutoff, skin, self.model.takes_from)

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        here = self._list(self.neighbors.skin)  # the model may run elsewhere now
        if (type(here), here.device) != (type(self.neighbors), self.neighbors.device):
            self.neighbors = here

    def calculate(
        self, atoms: Atoms | None = None, properties=("energy",), system_changes=all_changes
    ) -> None:
        """Fill `results`; everything is computed at once, whatever is asked."""
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise DataError("There is no structure: give one, as in calc.get_property('energy', atoms).")
        if self.check_state(atoms):  # get_property has made the copy already
            self.atoms = atoms.copy()
        if len(atoms) == 0:
            raise DataError("The structure has no atoms.")
        periodic = bool(atoms.pbc.all() and atoms.cell.array.any(axis=1).all())
        if not periodic and _STRESSES & set(properties):
            raise PropertyNotImplementedError(
                "Stress needs a structure that is periodic in all three directions; "
                f"found pbc {atoms.pbc.tolist()} and a cell of rank {atoms.cell.rank}."
            )
        if FIELD.name in atoms.info and not self._warned_of_field:
            self._warn_of_field(np.ravel(atoms.info[FIELD.name]))
        if not np.isfinite(atoms.positions).all():
            raise DataError("Positions are not finite; the run has diverged, or the structure is damaged.")
        derivatives = self.derivatives or not set(properties).isdisjoint(self.model.metadata.derivatives)
        each = self._evaluate(atoms, "heat_virials" in properties, derivatives)
        for found, alone in zip(each, self._alone, strict=False):  # none: total energies
            found["atom_energies"] -= alone[self.model.atom_types(atoms.numbers)]
        rows = each[0]
        if len(each) > 1:
            shared = [name for name in rows if name != "features"]  # whose widths may differ
            rows = {name: np.mean([found[name] for found in each], axis=0) for name in shared}
        _check_finite(rows.values())
        names = [name for name in self.model.output_names if name in rows]
        molecular = [name for name in names if not (QUANTITIES[name].charges and atoms.pbc.any())]
        if lacking := set(names) & set(properties) - set(molecular):
            raise PropertyNotImplementedError(
                f"{', '.join(lacking)}: Σ q r of a periodic structure depends on which images it has."
            )
        self.results = of_structure(rows, molecular, atoms.positions, self._given(atoms))
        if "dipole" in self.results:
            self.results["dipole"] = self.results["dipole"] * self.dipole_factor
        if not self.model.has_energy:
            return
        energies, forces = rows["atom_energies"], rows["forces"]
        energy = float(energies.sum())
        self.results |= {"energy": energy, "free_energy": energy, "energies": energies, "forces": forces}
        if len(each) > 1:
            totals = np.array([[found["atom_energies"].sum()] for found in each])
            spread = deviation(np.stack([found["forces"] for found in each]))
            self.results |= {"energy_std": float(deviation(totals)[0]), "forces_std": spread}
        if self._gives_uncertainties:
            features = rows["features"]
            sigma = self.model.engine.uncertainty(np.vstack([features.sum(axis=0), features]))
            self.results |= {"energy_uncertainty": float(sigma[0]), "energies_uncertainty": sigma[1:]}
        if periodic:
            stresses = stress_to_voigt(-rows["atom_virials"] / atoms.get_volume())
            self.results |= {"stress": stresses.sum(axis=0), "stresses": stresses}
        if "atom_heat_virials" in rows:
            self.results["heat_virials"] = rows["atom_heat_virials"]

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True):
        """As every ASE calculator; the heat flux follows the velocities, which are no reason to calculate."""
        if name in type(self).implemented_properties and not self.model.has_energy:
            raise PropertyNotImplementedError(
                f"{self.model.path} has no {name}: it was trained without energies and forces (model.energy: "
                f"false) and predicts {', '.join(self.model.output_names)} alone."
            )
        if name != "heat_flux":
            return super().get_property(name, atoms, allow_calculation)
        virials = super().get_property("heat_virials", atoms, allow_calculation)
        if virials is None:
            return None
        atoms = self.atoms if atoms is None else atoms
        velocities = atoms.get_velocities()
        energies = self.results["energies"] + 0.5 * atoms.get_masses() * (velocities**2).sum(axis=1)
        flux = energies @ velocities + np.einsum("nab,nb->a", virials, velocities)
        if not np.isfinite(flux).all():
            raise DataError("The heat flux is not finite: velocities or masses of the structure are not.")
        self.results["heat_flux"] = flux
        return flux.copy()

    @property
    def dipole_factor(self) -> float:
        """From the unit of an output called dipole to ASE's, e Å; 1 if it is of another kind."""
        size, powers = compound_unit(QUANTITIES["dipole"].unit)
        return size if powers == compound_unit("e*Ang")[1] else 1.0

    def _given(self, atoms: Atoms) -> dict[str, float]:
        """What outputs add up to, by the names of these numbers in ``atoms.info``."""
        totals = {QUANTITIES[name].total for name in self.model.output_names} - {""}
        given = {name: atoms.info[name] for name in totals if name in atoms.info}
        for name, value in given.items():
            if not (isinstance(value, Real) and math.isfinite(value)):
                raise DataError(
                    f"atoms.info['{name}'] must be a number ({QUANTITIES[name].unit}), found {value!r}."
                )
        return given

    def _warn_of_field(self, given: np.ndarray) -> None:
        """Once, of a field that the structure has and the results have not."""
        own = np.zeros(3) if self.field is None else self.field
        if given.dtype.kind in "iuf" and given.shape in ((1,), (3,)) and not np.allclose(given, own):
            self._warned_of_field = True
            log.warning(
                "atoms.info['%s'] is %s, but the calculator's field, which counts, is %s V/Å.",
                FIELD.name, given.tolist(), own.tolist(),
            )  # fmt: skip

    def export_properties(self) -> Properties:
        """Of the last evaluation, what ASE has names for."""
        return Properties({name: value for name, value in self.results.items() if name in all_outputs})

    def _evaluate(self, atoms: Atoms, heat: bool, derivatives: bool) -> list[dict[str, np.ndarray]]:
        """What each member says of each atom, as `DeployedModel.rows`."""
        atom_types = self.model.atom_types(atoms.numbers)
        if isinstance(self.neighbors, EngineList):
            return self._evaluate_there(self.neighbors, atoms, atom_types, heat)
        edges = self.neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)
        types = self._types_on_device(atom_types[edges.order])
        for found in self.distances.find(edges, types):
            self.report_distance(found)
        inputs = edges.vec, edges.index, types, types >= 0
        try:  # all are at work before a GPU is waited for
            more = {"heat": heat, "field": self.field, "derivatives": derivatives}
            each = [member.rows(*inputs, **more) for member in self.members]
        except ConfigError as error:
            raise PropertyNotImplementedError(str(error)) from None
        place = edges.place
        return [{name: as_array(rows).take(place, axis=0) for name, rows in found.items()} for found in each]

    def _evaluate_there(
        self, order: EngineList, atoms: Atoms, atom_types: np.ndarray, heat: bool
    ) -> list[dict[str, np.ndarray]]:
        """By engines that find the edges themselves; which atoms are too close is looked for on the host."""
        if heat and any(member.metadata.num_exchanges for member in self.members):
            raise PropertyNotImplementedError(
                f"{self.model.path} passes messages, and its heat flux is computed on a CPU only: use "
                "device='cpu'."
            )
        geometry = atoms.positions, atoms.cell.array, atoms.pbc
        try:
            for *structure, anew in order.structures(*geometry):
                types = atom_types[order.order]
                more = {"watched": self.distances.limits, "anew": anew, "heat": heat}
                each = [member.rows_of_structure(*structure, types, **more) for member in self.members]
        except DataError:
            self._report_distances(geometry, atom_types)  # raises it with the indices of these atoms
            raise
        if any(closer for _, closer in each):
            self._report_distances(geometry, atom_types)
        return [
            {name: values.take(order.place, axis=0) for name, values in found.items()} for found, _ in each
        ]

    def _report_distances(self, geometry: tuple[np.ndarray, ...], atom_types: np.ndarray) -> None:
        edges = VerletList(self.model.metadata.cutoff, 0.0).edges(*geometry)
        for found in self.distances.find(edges, atom_types[edges.order]):
            self.report_distance(found)

    @property
    def field(self) -> np.ndarray | None:
        """(3,) V/Å, the electric field; None: there is none."""
        return self._field

    @field.setter
    def field(self, field: ArrayLike | None) -> None:
        if field is not None:
            field = np.array(field, dtype=np.float64)
            if field.shape != (3,) or not np.isfinite(field).all():
                raise ConfigError(f"field must be three numbers (V/Å), found {field.tolist()}.")
            for member in self.members:
                if not member.metadata.field:
                    raise ConfigError(
                        f"{member.path}: its energy does not depend on an electric field; that of a model "
                        "trained with model.field: true does."
                    )
        self._field = field
        self.reset()

    @property
    def _gives_uncertainties(self) -> bool:
        return len(self.members) == 1 and self.model.has_features

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since the last evaluation. Exactly, which is ten times faster than ASE's."""
        if self.atoms is None:
            return list(all_changes)
        pairs = {
            "numbers": (atoms.numbers, self.atoms.numbers),
            "positions": (atoms.positions, self.atoms.positions),
            "cell": (atoms.cell.array, self.atoms.cell.array),
            "pbc": (atoms.pbc, self.atoms.pbc),
        }
        changed = [name for name, pair in pairs.items() if not np.array_equal(*pair)]
        return changed + (["info"] if self._given(atoms) != self._given(self.atoms) else [])

    def __getstate__(self) -> dict:
        return vars(self) | {"_types": None}  # which may be on a GPU

    def report_distance(self, found: TooClose) -> None:
        """Told of atoms that are closer than any in the training set, once for each pair of elements."""
        log.warning("Closer than anything the model was trained on: %s.", found)

    def _types_on_device(self, types: np.ndarray) -> Array:
        """(N,) → the same tensor as long as they stay the same: what follows from it is kept with it."""
        if self._types is None or not np.array_equal(self._types[0], types):
            self._types = types, self.neighbors.there(types)
        return self._types[1]


def _energies_alone(model: DeployedModel) -> np.ndarray:
    """(T,) eV, of an atom of each type that has no neighbors."""
    types = np.arange(len(model.metadata.species))
    return model(np.zeros((0, 3)), np.zeros((2, 0), dtype=np.int64), types, types >= 0)[0]


def _check_finite(rows: Collection[np.ndarray]) -> None:
    if math.isfinite(sum(values.sum() for values in rows)):
        return
    finite = np.isfinite(np.column_stack([values.reshape(len(values), -1) for values in rows])).all(axis=1)
    if not finite.all():
        wrong = np.flatnonzero(~finite)
        named = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
        raise SimulationError(
            f"The model's results are not finite for {len(wrong)} of {len(finite)} atoms (indices {named}). "
            "The structure is far from what the model was trained on, or the model is broken: "
            "run 'equipot check' on its file."
        )
