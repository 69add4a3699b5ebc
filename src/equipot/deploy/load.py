"""Load a deployed model."""

import io
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

import equipot.ops  # noqa: F401  (registers the custom operators a deployed file may call)
from equipot.data.dataset import atom_types
from equipot.deploy.capsule import Capsule, Deviation, compare_capsule
from equipot.deploy.jit import quiet_jit, steady_execution
from equipot.deploy.metadata import Metadata, read_metadata
from equipot.devices import resolve_device
from equipot.errors import ModelFileError
from equipot.ops.operators import load_operators

log = logging.getLogger("equipot")

# GNU's OpenMP waits for ever in a forked process for the threads that stayed behind.
os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


@dataclass(frozen=True)
class DeployedModel:
    """A TorchScript potential on its device, and its metadata.

    It never changes: threads may share it, and a copy is the same object. Pickled it carries the model
    itself, not the path of a file that may be another by then.
    """

    path: Path
    module: torch.jit.ScriptModule
    metadata: Metadata
    device: torch.device

    def __call__(
        self, edge_vec: Tensor, edge_index: Tensor, atom_types: Tensor, owned: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The deployed contract, on `device`.

        edge_vec (E, 3) float64 Å, edge_index (2, E) int64, atom_types (N,) int64, owned (N,) bool →
        atom_energies (N,) eV, forces (N, 3) eV/Å, atom_virials (N, 3, 3) eV, all float64.
        """
        # Forces are gradients even where the caller has switched gradients off; tensors made in
        # inference mode cannot take part in one, copies of them can.
        with torch.inference_mode(False), torch.enable_grad(), steady_execution():
            inputs = (edge_vec, edge_index, atom_types, owned)
            return self.module(*(x.clone() if x.is_inference() else x for x in inputs))

    def __deepcopy__(self, _) -> "DeployedModel":
        return self

    def __reduce__(self):
        buffer = io.BytesIO()
        with quiet_jit():
            torch.jit.save(self.module, buffer)
        return _unpickled, (buffer.getvalue(), self.path, self.metadata, str(self.device))

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


def load_deployed(path: str | Path, device: str | torch.device = "auto") -> DeployedModel:
    """Load a file written by `deploy`.

    ``device``: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...

    Raises ModelFileError (missing, damaged, not deployed by equipot, newer format) or DeviceError.
    """
    path, target = Path(path), resolve_device(device)
    metadata = read_metadata(path)
    try:
        module = _load_module(str(path), target)
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: torch {torch.__version__} cannot load this model (deployed with torch "
            f"{metadata.torch_version}): {_first_line(error)}"
        ) from None
    log.info("Model %s runs on %s (TorchScript, %s).", path, target, metadata.dtype)
    return DeployedModel(path, module, metadata, target)


def _unpickled(content: bytes, path: Path, metadata: Metadata, device: str) -> DeployedModel:
    target = resolve_device(device)
    return DeployedModel(path, _module_of(content, target), metadata, target)


@lru_cache(maxsize=16)
def _module_of(content: bytes, device: torch.device) -> torch.jit.ScriptModule:
    """Loaded once: every task of a pool of processes brings the same content along."""
    return _load_module(io.BytesIO(content), device)


def _load_module(file: str | BinaryIO, device: torch.device) -> torch.jit.ScriptModule:
    load_operators()  # the file may refer to them
    with quiet_jit():
        return torch.jit.load(file, map_location=device).eval()


def _first_line(error: Exception) -> str:
    """TorchScript errors carry pages of stack; the message is the first line with text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
