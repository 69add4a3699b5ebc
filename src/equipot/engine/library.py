"""The engine's library in Python: equipot.h by ctypes, arrays by NumPy. Nothing here needs torch."""

import ctypes
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipot.engine.build import build
from equipot.errors import ConfigError, DataError, DeviceError, ModelFileError, SimulationError

_ABI = 6  # EQUIPOT_ABI
GPU_SKIN = 0.5  # Å, of the neighbor list that a GPU keeps

_ERRORS = {1: DataError, 2: ModelFileError, 3: DataError, 4: SimulationError}  # by equipot_status
_FAILED = 5


class _Output(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("unit", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("num_axes", ctypes.c_int32),
        ("per_atom", ctypes.c_int32),
        ("mean", ctypes.c_int32),
        ("is_derivative", ctypes.c_int32),
        ("first", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("total", ctypes.c_char_p),
        ("charges", ctypes.c_char_p),
    )


class _Description(ctypes.Structure):
    _fields_ = (
        ("num_species", ctypes.c_int32),
        ("species", ctypes.POINTER(ctypes.c_char_p)),
        ("reference_energies", ctypes.POINTER(ctypes.c_double)),
        ("masses", ctypes.POINTER(ctypes.c_double)),
        ("cutoff", ctypes.c_double),
        ("num_exchanges", ctypes.c_int32),
        ("widest_exchange", ctypes.c_int64),
        ("bytes_per_number", ctypes.c_int32),
        ("model_type", ctypes.c_char_p),
        ("equipot_version", ctypes.c_char_p),
        ("checksum", ctypes.c_uint64),
        ("feature_width", ctypes.c_int64),
        ("shortest_distances", ctypes.POINTER(ctypes.c_double)),
        ("num_outputs", ctypes.c_int32),
        ("outputs", ctypes.POINTER(_Output)),
        ("output_width", ctypes.c_int64),
        ("derivative_width", ctypes.c_int64),
        ("has_energy", ctypes.c_int32),
        ("feels_field", ctypes.c_int32),
    )


class _Edges(ctypes.Structure):
    _fields_ = (
        ("num_atoms", ctypes.c_int64),
        ("num_edges", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in ("types", "owned", "center", "neighbor", "edge_vec", "exchange", "ids", "field")
        ),
    )


class _Structure(ctypes.Structure):
    _fields_ = (
        ("num_atoms", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("types", "positions", "cell")),
        ("periodic", ctypes.c_int32 * 3),
        ("field", ctypes.c_void_p),
        ("watched", ctypes.c_void_p),
        ("anew", ctypes.c_int32),
    )


class _Results(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            *("energy", "atom_energies", "forces", "virial", "atom_virials", "atom_heat_virials", "features"),
            *("outputs", "derivatives", "closer"),
        )
    )


class OutputFacts(NamedTuple):
    """Of a model's output beside the energy."""

    unit: str
    shape: tuple[int, ...]  # of one value
    per_atom: bool  # otherwise a structure's is the sum of its atoms' rows
    mean: bool  # or their mean
    is_derivative: bool  # by positions; those come last


@dataclass(frozen=True)
class Evaluation:
    """Of N atoms; float64."""

    atom_energies: NDArray[np.float64]  # (N,) eV, zero where not owned
    forces: NDArray[np.float64]  # (N, 3) eV/Å
    atom_virials: NDArray[np.float64]  # (N, 3, 3) eV, counted at the neighbor
    # (N, 3, 3) eV, if wanted: V of the heat flux Σ V_i v_i; the last index is the velocity's.
    atom_heat_virials: NDArray[np.float64] | None = None
    features: NDArray[np.float64] | None = None  # (N, feature_width) eV, where the file has an uncertainty
    # (N, output_width), where the model has outputs: their values side by side, zero where not owned.
    outputs: NDArray[np.float64] | None = None
    # (N, derivative_width), the same of outputs that are derivatives, if wanted; as forces where not owned.
    derivatives: NDArray[np.float64] | None = None
    closer: bool = False  # an edge is shorter than the watched distance of its species

    @property
    def values(self) -> NDArray[np.float64] | None:
        """Outputs, and derivatives behind them."""
        found = [rows for rows in (self.outputs, self.derivatives) if rows is not None]
        return np.concatenate(found, axis=1) if found else None


class Engine:
    """A deployed model, evaluated without torch; threads may share it.

    Args:
        path: a file written by ``equipot deploy``.
        content: its bytes, if they have been read already; ``path`` then stands in messages only.
        device: "cpu", or a GPU of NVIDIA: "cuda", "cuda:1", ...

    Raises:
        ModelFileError: missing, damaged, or deployed before there was an engine.
        KernelBuildError: the library is not there and cannot be compiled.
        DeviceError: the GPU, its driver or NVRTC is not there, or the model has what a GPU does not compute.
    """

    def __init__(self, path: str | Path, content: bytes | None = None, device: str = "cpu"):
        self.path, self.device = Path(path), device
        self._library = load_library()
        self._model = ctypes.c_void_p()
        name, model = str(path).encode(), ctypes.byref(self._model)
        where = device.encode()
        if device != "cpu":
            _open_compilers()
        try:
            if content is None:
                self._call("equipot_open_on", name, where, model)
            else:
                size = ctypes.c_size_t(len(content))
                self._call("equipot_open_memory_on", name, content, size, where, model)
        except (DataError, SimulationError) as error:
            raise (error if device == "cpu" else DeviceError(str(error))) from None
        found = _Description()
        self._call("equipot_describe", self._model, ctypes.byref(found))
        self.species = tuple(found.species[n].decode() for n in range(found.num_species))
        self.cutoff = found.cutoff
        self.num_exchanges = found.num_exchanges
        self.feature_width = found.feature_width  # 0: the file has no uncertainty
        self.output_facts = dict(_output_facts(found.outputs[n]) for n in range(found.num_outputs))
        self.output_width = found.output_width  # numbers of all of them, of an atom, but derivatives
        self.derivative_width = found.derivative_width
        self.has_energy = bool(found.has_energy)  # otherwise energies, forces and virials are zero
        self.feels_field = bool(found.feels_field)

    def __del__(self):
        if getattr(self, "_model", None):
            self._library.equipot_close(self._model)

    def evaluate_edges(
        self,
        edge_vec: NDArray[np.float64],
        edge_index: NDArray[np.int64],
        atom_types: NDArray[np.int64],
        owned: NDArray[np.bool_] | None = None,
        heat: bool = False,
        field: ArrayLike | None = None,
        derivatives: bool = True,
    ) -> Evaluation:
        """The deployed contract: (E, 3) Å, (2, E), (N,), (N,) or None for all; ``heat``: heat virials too.

        ``field`` (3,) V/Å: all is as in a uniform electric field. ``derivatives``: outputs that are such,
        too, at the cost of three reverse passes each.

        Raises:
            DataError: an atom or a type that is not there; atoms that coincide; a field that the model
                does not feel.
            SimulationError: the results are not finite.
        """
        center, neighbor = _array("edge_index", edge_index, np.int64, (2, -1))
        edge_vec = _array("edge_vec", edge_vec, np.float64, (len(center), 3))
        types = _array("atom_types", atom_types, np.int64, (-1,))
        if owned is not None:
            owned = _array("owned", owned, np.bool_, types.shape)
        field = _field(field)
        arrays = (types, owned, center, neighbor, edge_vec, None, None, field)
        edges = _Edges(len(types), len(center), *map(_address, arrays))
        return self._evaluate("equipot_evaluate_edges", edges, len(types), heat, derivatives)

    def evaluate(
        self,
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        atom_types: NDArray[np.int64],
        heat: bool = False,
        field: ArrayLike | None = None,
        derivatives: bool = True,
        watched: NDArray[np.float64] | None = None,
        anew: bool = False,
    ) -> Evaluation:
        """From positions (N, 3) Å, cell (3, 3) Å, pbc (3,); neighbors are searched. The rest as above.

        ``watched`` (T, T) Å: distances by types that edges are compared with. A GPU keeps a neighbor list
        with a skin of GPU_SKIN as long as it is complete, or makes it ``anew``.
        """
        types = _array("atom_types", atom_types, np.int64, (-1,))
        positions = _array("positions", positions, np.float64, (len(types), 3))
        cell = _array("cell", cell, np.float64, (3, 3))
        periodic = (ctypes.c_int32 * 3)(*_array("pbc", np.asarray(pbc) != 0, np.bool_, (3,)).tolist())
        field = _field(field)
        if watched is not None:
            watched = _array("watched", watched, np.float64, (len(self.species),) * 2)
        structure = _Structure(
            len(types),
            *map(_address, (types, positions, cell)),
            periodic,
            *map(_address, (field, watched)),
            anew,
        )
        return self._evaluate("equipot_evaluate", structure, len(types), heat, derivatives)

    def uncertainty(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n, feature_width) eV → (n,) eV: standard deviations, by last-layer prediction rigidity.

        A row of features is an atom's, of its energy, or the sum over all atoms of a structure.

        Raises:
            DataError: another width, or the file was deployed without an uncertainty.
            SimulationError: features that are not finite.
        """
        features = _array("features", features, np.float64, (-1, self.feature_width or -1))
        sigma = np.empty(len(features))
        arrays = (ctypes.c_void_p(_address(array)) for array in (features, sigma))
        self._call("equipot_energy_uncertainty", self._model, ctypes.c_int64(len(sigma)), *arrays)
        return sigma

    def check(self) -> str:
        """Re-evaluate the reference structures in the file; a line about it.

        Raises:
            ModelFileError: the model does not reproduce them here.
            SimulationError: they could not be evaluated: too little memory, a GPU that fails.
        """
        summary = ctypes.create_string_buffer(1000)
        self._call("equipot_check", self._model, summary, ctypes.c_size_t(len(summary)))
        return summary.value.decode()

    def _evaluate(
        self, function: str, structure: ctypes.Structure, num_atoms: int, heat: bool, derivatives: bool
    ) -> Evaluation:
        shapes = {"atom_energies": (), "forces": (3,), "atom_virials": (3, 3)}
        shapes |= {"atom_heat_virials": (3, 3)} if heat else {}
        shapes |= {"features": (self.feature_width,)} if self.feature_width else {}
        shapes |= {"outputs": (self.output_width,)} if self.output_width else {}
        if derivatives and self.derivative_width:
            shapes["derivatives"] = (self.derivative_width,)
        rows = {name: np.empty((num_atoms, *shape)) for name, shape in shapes.items()}
        closer = np.zeros(1, dtype=np.int32)
        results = _Results(closer=_address(closer), **{name: _address(array) for name, array in rows.items()})
        self._call(function, self._model, ctypes.byref(structure), ctypes.byref(results))
        return Evaluation(**rows, closer=bool(closer[0]))

    def _call(self, function: str, *arguments) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            message = self._library.equipot_message().decode(errors="replace")
            kind = _ERRORS.get(status, SimulationError)
            if function == "equipot_check" and status != _FAILED:
                kind = ModelFileError
            if not message.startswith(str(self.path)):
                message = message[:1].upper() + message[1:]
            raise kind(message.removesuffix(".") + ".")


def _output_facts(output: _Output) -> tuple[str, OutputFacts]:
    shape = tuple(output.shape[: output.num_axes])
    kind = (bool(flag) for flag in (output.per_atom, output.mean, output.is_derivative))
    return output.name.decode(), OutputFacts(output.unit.decode(), shape, *kind)


def _array(name: str, values: ArrayLike, dtype: type, shape: tuple[int, ...]) -> NDArray:
    """As the library takes it; -1: any length. Raises DataError for another shape, or numbers cut by it."""
    given = np.asarray(values)
    if given.ndim != len(shape) or any(n not in (m, -1) for n, m in zip(shape, given.shape, strict=True)):
        lengths = ", ".join("n" if n == -1 else str(n) for n in shape) + ("," if len(shape) == 1 else "")
        raise DataError(f"{name} must be ({lengths}), but are {given.shape}.")
    array = np.ascontiguousarray(given, dtype=dtype)
    if not np.can_cast(given.dtype, dtype, "same_kind") and not np.array_equal(array, given):
        raise DataError(f"{name} must be {np.dtype(dtype)}, but are {given.dtype}, not all of them whole.")
    return array


def _field(field: ArrayLike | None) -> NDArray | None:
    return None if field is None else _array("field", field, np.float64, (3,))


def _address(array: NDArray | None) -> int | None:
    return None if array is None else array.ctypes.data


@functools.cache
def load_library() -> ctypes.CDLL:
    """The library, compiled at its first use if it is not in the package.

    Raises KernelBuildError, or ConfigError if EQUIPOT_INSTRUCTIONS names what is not there.
    """
    library = ctypes.CDLL(str(build()))
    library.equipot_message.restype = ctypes.c_char_p
    library.equipot_close.argtypes = [ctypes.c_void_p]
    library.equipot_close.restype = None
    library.equipot_instructions.restype = ctypes.c_char_p
    assert library.equipot_abi() == _ABI  # built from these sources
    if library.equipot_instructions() is None:
        raise ConfigError(f"The engine cannot be used: {library.equipot_message().decode()}.")
    return library


def find_compilers() -> list[Path]:
    """Each NVRTC of NVIDIA's packages: there may be those of several versions of CUDA."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations or () if found else ()
    return sorted(file for folder in folders for file in Path(folder).glob("*/lib/libnvrtc.so.*"))


@functools.cache
def _open_compilers() -> None:
    """For the library, which takes what suits the driver of those that the process has opened."""
    for file in find_compilers():
        ctypes.CDLL(str(file))


def num_gpus() -> int:
    """The GPUs that an `Engine` can be opened on. Raises as `load_library`."""
    _open_compilers()
    return load_library().equipot_num_gpus()


def why_no_gpu() -> str:
    """What `num_gpus` lacks, after it has found none."""
    return load_library().equipot_message().decode(errors="replace")


def instructions() -> str:
    """The set of instructions that the engine uses here. Raises as `load_library`."""
    return load_library().equipot_instructions().decode()
