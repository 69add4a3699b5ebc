"""Load a deployed model."""

import io
import logging
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import equipot.ops  # noqa: F401  (registers the custom operators a deployed file may call)
from equipot.compile import KernelBuildError
from equipot.data.dataset import atom_types
from equipot.deploy.capsule import Capsule, Deviation, compare_capsule
from equipot.deploy.jit import quiet_jit, steady_execution
from equipot.deploy.metadata import Metadata, read_metadata
from equipot.devices import resolve_device
from equipot.engine.library import Engine
from equipot.errors import ConfigError, ModelFileError
from equipot.ops.operators import load_operators

log = logging.getLogger("equipot")

# GNU's OpenMP waits for ever in a forked process for the threads that stayed behind.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


@dataclass(frozen=True)
class DeployedModel:
    """A deployed potential on its device, and its metadata.

    It never changes: threads may share it, and a copy is the same object. Pickled it carries the model
    itself, not the path of a file that may be another by then.
    """

    path: Path
    metadata: Metadata
    device: torch.device
    content: bytes = field(repr=False)  # of the file
    engine: Engine | None = None  # what evaluates it; None: TorchScript

    @cached_property
    def module(self) -> torch.jit.ScriptModule:
        """The model as TorchScript. Raises ModelFileError if this torch cannot load it."""
        return _torchscript(self.content, self.path, self.device, self.metadata.torch_version)

    def __call__(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, owned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The deployed contract, on `device`.

        edge_vec (E, 3) float64 Å, edge_index (2, E) int64, atom_types (N,) int64, owned (N,) bool →
        atom_energies (N,) eV, forces (N, 3) eV/Å, atom_virials (N, 3, 3) eV, all float64.
        """
        inputs = (edge_vec, edge_index, atom_types, owned)
        if self.engine is not None:
            found = self.engine.evaluate_edges(*(x.detach().numpy() for x in inputs))
            rows = (found.atom_energies, found.forces, found.atom_virials)
            return tuple(torch.from_numpy(row) for row in rows)
        # Forces are gradients even where the caller has switched gradients off; tensors made in
        # inference mode cannot take part in one, copies of them can.
        with torch.inference_mode(False), torch.enable_grad(), steady_execution():
            return self.module(*(x.clone() if x.is_inference() else x for x in inputs))

    def __deepcopy__(self, _) -> "DeployedModel":
        return self

    def __reduce__(self):
        engine = "auto" if self.engine is not None else "torch"
        return _opened, (self.content, self.path, self.metadata, str(self.device), engine)

    def atom_types(self, atomic_numbers: Iterable[int]) -> np.ndarray:
        """(N,) atomic numbers → (N,) atom types. Raises UnknownSpeciesError naming the unknown elements."""
        where = f"For the model {self.path}: the structure"
        return atom_types(np.asarray(list(atomic_numbers)), self.metadata.species, where)

    def check_capsule(self) -> list[Deviation]:
        """Re-evaluate the reference structures in the file, here and on this device."""
        capsule = Capsule.from_json(self.metadata.capsule)
        metadata = self.metadata
        return compare_capsule(self, capsule, metadata.dtype, metadata.atomic_energies)

    def require_capsule(self) -> None:
        """Raises ModelFileError if the model does not reproduce its reference structures here."""
        failed = [deviation for deviation in self.check_capsule() if not deviation.passed]
        if failed:
            raise ModelFileError(
                f"{self.path}: the model does not reproduce its reference structures here ({self.device}, "
                f"torch {torch.__version__}; deployed with torch {self.metadata.torch_version}): "
                f"{'; '.join(map(str, failed))}. "
                "Deploy it again with this installation, and report the case if that does not help."
            )


def load_deployed(
    path: str | Path, device: str | torch.device = "auto", engine: str = "auto"
) -> DeployedModel:
    """Load a file written by `deploy`.

    ``device``: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ... ``engine``: what evaluates the
    model; "auto": equipot's engine on a CPU, where it is there; "torch": TorchScript.

    Raises ModelFileError (missing, damaged, not deployed by equipot, newer format), DeviceError, or
    ConfigError for another engine.
    """
    if engine not in ("auto", "torch"):
        raise ConfigError(f"engine must be 'auto' or 'torch', found '{engine}'.")
    path, target = Path(path), resolve_device(device)
    metadata = read_metadata(path)
    model = _opened(path.read_bytes(), path, metadata, str(target), engine)
    if model.engine is None:
        _ = model.module  # an error now, not at the first use
    by = "TorchScript" if model.engine is None else "engine"
    log.info("Model %s runs on %s (%s, %s).", path, target, by, metadata.dtype)
    return model


def _opened(content: bytes, path: Path, metadata: Metadata, device: str, engine: str) -> DeployedModel:
    target = resolve_device(device)
    found = _engine_of(path, content) if engine == "auto" and target.type == "cpu" else None
    return DeployedModel(path, metadata, target, content, found)


# Opened once: every task of a pool of processes brings the same content along.
@lru_cache(maxsize=16)
def _torchscript(content: bytes, path: Path, device: torch.device, version: str) -> torch.jit.ScriptModule:
    load_operators()  # the file may refer to them
    try:
        with quiet_jit():
            return torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: torch {torch.__version__} cannot load this model (deployed with torch {version}): "
            f"{_first_line(error)}"
        ) from None


@lru_cache(maxsize=16)
def _engine_of(path: Path, content: bytes) -> Engine | None:
    if os.environ.get("EQUIPOT_KERNELS", "").strip().lower() == "off":
        return None
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if not any(name.endswith("/engine/program.json") for name in archive.namelist()):
            log.info("%s has no program for the engine; TorchScript runs it.", path)
            return None
    try:
        return Engine(path, content)
    except KernelBuildError as error:
        log.warning("The engine cannot be used, TorchScript runs %s: %s", path, error)
        return None


def _first_line(error: Exception) -> str:
    """TorchScript errors carry pages of stack; the message is the first line with text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
