"""Load a deployed model."""

import functools
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from equipot.data.species import look_up, type_table
from equipot.deploy.capsule import Capsule, Deviation, compare_capsule
from equipot.deploy.engines import engine_gpu, engine_of
from equipot.deploy.metadata import Metadata, read_metadata
from equipot.deploy.uncertainty import compare_uncertainties
from equipot.devices import resolve_device
from equipot.engine.library import Engine, Evaluation, instructions
from equipot.errors import ConfigError, ModelFileError
from equipot.quantities import BASIC_ROWS, FIELD, declare, output, rows_by_name, values_by_name

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", np.ndarray, "torch.Tensor")

log = logging.getLogger("equipot")


@dataclass(frozen=True)
class DeployedModel:
    """A deployed potential on its device, and its metadata.

    It never changes: threads may share it, and a copy is the same object. Pickled it carries the model
    itself, not the path of a file that may be another by then.
    """

    path: Path
    metadata: Metadata
    device: str
    content: bytes = field(repr=False)  # of the file
    engine: Engine | None = None  # what evaluates it; None: TorchScript

    @functools.cached_property
    def module(self) -> "torch.jit.ScriptModule":
        """The model as TorchScript. Raises ModelFileError if this torch cannot load it."""
        from equipot.deploy.jit import load_torchscript

        return load_torchscript(self.content, self.path, self.device, self.metadata.torch_version)

    def __call__(
        self,
        edge_vec: Array,
        edge_index: Array,
        atom_types: Array,
        owned: Array,
        *,
        field: ArrayLike | None = None,
        derivatives: bool = True,
    ) -> tuple[Array, ...]:
        """The deployed contract, from arrays to arrays, or on `device` from tensors to tensors.

        edge_vec (E, 3) float64 Å, edge_index (2, E) int64, atom_types (N,) int64, owned (N,) bool →
        atom_energies (N,) eV, forces (N, 3) eV/Å, atom_virials (N, 3, 3) eV, all float64; of a model with
        outputs their values (N, K) come after these (`rows` names them), of one without energies alone.

        ``field`` (3,) V/Å, or (N, 3) of each atom's structure: all of it in a uniform electric field.
        ``derivatives``: outputs that are derivatives by positions, too.

        Raises ConfigError for a field that the model does not know.
        """
        inputs = (edge_vec, edge_index, atom_types, owned)
        by_engine = None
        if self._engine_for(field) is not None:
            by_engine = functools.partial(self._by_engine, field=field, derivatives=derivatives)
        if isinstance(edge_vec, np.ndarray) and by_engine is not None:
            return by_engine(*inputs)
        from equipot.deploy import jit

        if by_engine is not None:
            return jit.on_tensors(by_engine, inputs)
        more = self._options(field, derivatives)
        if isinstance(edge_vec, np.ndarray):
            return jit.on_arrays(self.module, inputs, self.device, **more)
        return jit.run(self.module, *inputs, **more)

    def _engine_for(self, field: ArrayLike | None) -> Engine | None:
        """The engine, where it can do it: in one field for all atoms."""
        if field is not None and not self.metadata.field:
            raise ConfigError(f"{self.path}: its energy does not depend on an electric field (model.field).")
        return self.engine if field is None or np.ndim(field) == 1 else None

    def _options(self, field: ArrayLike | None, derivatives: bool) -> dict[str, Any]:
        """Further arguments of the TorchScript, which models without fields and derivatives do not know."""
        more = {} if derivatives or not self.metadata.derivatives else {"derivatives": False}
        if field is not None:
            from torch import as_tensor, float64

            more["field"] = as_tensor(field, dtype=float64, device=self.device)
        return more

    def _by_engine(self, *inputs: np.ndarray, **options: Any) -> tuple[np.ndarray, ...]:
        found = self.engine.evaluate_edges(*inputs, **options)
        values = found.values
        if not self.has_energy:
            return (values,)
        rows = found.atom_energies, found.forces, found.atom_virials
        return rows if values is None else (*rows, values)

    @property
    def output_names(self) -> list[str]:
        """Of what it predicts beside energies and forces, in the order of their values."""
        return list(self.metadata.outputs)

    @property
    def has_energy(self) -> bool:
        """Whether it predicts energies, forces and virials; if not, its outputs alone."""
        return self.metadata.energy

    @property
    def has_features(self) -> bool:
        """Whether `rows` has features: the file has an uncertainty, and the engine runs it."""
        return self.engine is not None and self.engine.feature_width > 0

    def rows(
        self, *inputs: Array, heat: bool = False, field: ArrayLike | None = None, derivatives: bool = True
    ) -> dict[str, Array]:
        """What the model says of each atom, by the names of `CONTRACT`; arrays where there is an engine.

        The engine adds ``features`` (N, K) eV for `Engine.uncertainty`, if the file has one. ``heat`` adds
        ``atom_heat_virials`` (N, 3, 3) eV: V in the potential part Σ V_i v_i of the heat flux, whose second
        index is the velocity's (Langer et al., Phys. Rev. B 108, L100302 (2023)). ``field`` and
        ``derivatives`` as for a call.

        Raises ConfigError for the heat of a model that passes messages where TorchScript evaluates it, and as
        a call.
        """
        if self._engine_for(field) is not None:
            return self._named(
                self.engine.evaluate_edges(*inputs, heat=heat, field=field, derivatives=derivatives)
            )
        if heat and self.metadata.num_exchanges > 0:
            advice = (
                "Use device='cpu', engine='auto', no EQUIPOT_KERNELS=off, and a file deployed since there is "
                "an engine ('equipot deploy' again)."
            )
            raise ConfigError(
                f"{self.path} passes messages, and only equipot's engine gives the heat flux of such a "
                f"model; here it runs on {self.runs_by}. {advice}"
            )
        rows = rows_by_name(self(*inputs, field=field, derivatives=derivatives), self.output_names)
        # Where each energy depends on edges of its own alone, virials are the weights.
        return rows | ({"atom_heat_virials": rows["atom_virials"]} if heat else {})

    @property
    def finds_edges(self) -> bool:
        """Whether `rows_of_structure` is the way to evaluate it: on a GPU, by the engine."""
        return self.engine is not None and self.device != "cpu"

    def rows_of_structure(
        self,
        positions: np.ndarray,
        cell: np.ndarray,
        pbc: np.ndarray,
        atom_types: np.ndarray,
        *,
        watched: np.ndarray,
        anew: bool = False,
        heat: bool = False,
    ) -> tuple[dict[str, np.ndarray], bool]:
        """`rows` of a structure whose edges the engine finds; arguments as for `Engine.evaluate`.

        Also whether an edge is shorter than the watched distance of its species.
        """
        found = self.engine.evaluate(positions, cell, pbc, atom_types, heat=heat, watched=watched, anew=anew)
        return self._named(found), found.closer

    def _named(self, found: Evaluation) -> dict[str, np.ndarray]:
        """Arrays of the engine by the names of `CONTRACT`."""
        apart = {"outputs", "derivatives", "closer"} | ({*BASIC_ROWS} if not self.has_energy else set())
        rows = {name: x for name, x in vars(found).items() if x is not None and name not in apart}
        return rows | values_by_name(found.values, self.output_names)

    def __deepcopy__(self, _) -> "DeployedModel":
        return self

    def __reduce__(self):
        engine = "auto" if self.engine is not None else "torch"
        return _opened, (self.content, self.path, self.metadata, self.device, engine)

    @property
    def takes_from(self) -> str:
        """The device that inputs should be on: the engine has its own way to a GPU."""
        return self.device if self.engine is None else "cpu"

    @property
    def runs_by(self) -> str:
        """On which device, and by what."""
        if self.engine is not None and self.device != "cpu":
            return f"{self.device}, engine"
        if self.engine is not None:
            return f"{self.device}, engine ({instructions()})"
        from torch import __version__

        return f"{self.device}, TorchScript of torch {__version__}"

    @functools.cached_property
    def _type_table(self) -> np.ndarray:
        return type_table(self.metadata.species)

    def atom_types(self, atomic_numbers: ArrayLike) -> np.ndarray:
        """(N,) atomic numbers → (N,) atom types. Raises UnknownSpeciesError naming the unknown elements."""
        where = f"For the model {self.path}: the structure"
        return look_up(np.asarray(atomic_numbers), self._type_table, self.metadata.species, where)

    def require_energy(self, what: str) -> None:
        """Raises ModelFileError, naming ``what`` needs them, if the model has no energies."""
        if not self.has_energy:
            raise ModelFileError(
                f"{self.path}: this model has no energies and forces, which {what} takes: it was trained "
                f"with model.energy: false and predicts {', '.join(self.output_names)} alone."
            )

    def check_capsule(self) -> list[Deviation]:
        """Re-evaluate the reference structures in the file, here and on this device."""
        capsule = Capsule.from_json(self.metadata.capsule)
        metadata = self.metadata
        deviations = compare_capsule(self, capsule, metadata.dtype, metadata.atomic_energies)
        if self.has_features and metadata.uncertainty:
            structures = [reference.structure for reference in capsule.references]
            references = metadata.uncertainty["references"]
            deviations.append(compare_uncertainties(self.engine, structures, references, metadata.dtype))
        return deviations

    def require_capsule(self) -> None:
        """Raises ModelFileError if the model does not reproduce its reference structures here."""
        failed = [deviation for deviation in self.check_capsule() if not deviation.passed]
        if failed:
            raise ModelFileError(
                f"{self.path}: the model does not reproduce its reference structures here ({self.runs_by}; "
                f"deployed with torch {self.metadata.torch_version}): {'; '.join(map(str, failed))}. "
                "Deploy it again with this installation, and report the case if that does not help."
            )


def load_deployed(
    path: str | Path, device: "str | torch.device" = "auto", engine: str = "auto"
) -> DeployedModel:
    """Load a file written by `deploy`.

    ``device``: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ... ``engine``: what evaluates the
    model; "auto": equipot's engine, where it is there and can do on this device what the model asks for;
    "torch": TorchScript.

    Raises ModelFileError (missing, damaged, not deployed by equipot, newer format), DeviceError, or
    ConfigError for another engine.
    """
    if engine not in ("auto", "torch"):
        raise ConfigError(f"engine must be 'auto' or 'torch', found '{engine}'.")
    path = Path(path)
    metadata = read_metadata(path)
    model = _opened(path.read_bytes(), path, metadata, str(device), engine)
    if model.engine is None:
        _ = model.module  # an error now, not at the first use
    log.info("Model %s runs on %s, %s.", path, model.runs_by, metadata.dtype)
    return model


def _opened(content: bytes, path: Path, metadata: Metadata, device: str, engine: str) -> DeployedModel:
    for name, facts in metadata.outputs.items():
        declare(output(name, **facts))
    if metadata.field:
        declare(FIELD)
    if engine == "auto" and (gpu := engine_gpu(device)) and (found := engine_of(path, content, gpu)):
        return DeployedModel(path, metadata, gpu, content, found)
    target = resolve_device(device)  # by torch, if it is a GPU
    found = engine_of(path, content, "cpu") if engine == "auto" and target == "cpu" else None
    return DeployedModel(path, metadata, target, content, found)
