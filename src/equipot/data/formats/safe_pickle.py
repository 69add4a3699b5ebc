"""Reading pickles that may hold numbers, tensors and torch_geometric's Data, and nothing that runs."""

import collections
import io
import pickle
from typing import Any

import numpy as np


class RefusedPickleError(Exception):
    """The pickle asks for something other than plain data."""


class PlainObject:
    """Stands in for torch_geometric's classes: their attributes, without their code."""


def _tensor_storage(content: bytes) -> Any:
    import torch  # only here: reading other formats does not wait for it

    return torch.load(io.BytesIO(content), weights_only=True)


def _tensor(*args: Any) -> Any:
    import torch

    return torch._utils._rebuild_tensor_v2(*args)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise RefusedPickleError(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _reconstruct(subtype: type, shape: Any, dtype: Any) -> np.ndarray:
    if subtype is not np.ndarray:
        raise RefusedPickleError(f"an array of type {subtype}")
    return np.ndarray(shape, np.dtype("int8"))  # a placeholder; the state that follows fills it


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("torch.storage", "_load_from_bytes"): _tensor_storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    **{(module, "_reconstruct"): _reconstruct for module in _MULTIARRAY},
    **{(module, "scalar"): np.float64(0).__reduce__()[0] for module in _MULTIARRAY},
    ("torch_geometric.data.data", "Data"): PlainObject,
    ("torch_geometric.data.data", "DataEdgeAttr"): PlainObject,
    ("torch_geometric.data.data", "DataTensorAttr"): PlainObject,
    ("torch_geometric.data.storage", "GlobalStorage"): PlainObject,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise RefusedPickleError(f"{module}.{name}")
        return _ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise RefusedPickleError("a persistent object")


def load(content: bytes) -> Any:
    """What a pickle holds, if it is numbers, text, containers, arrays, tensors or torch_geometric's Data.

    Raises:
        RefusedPickleError: it names any other class or function; nothing of it was run.
        Exception: whatever a damaged pickle runs into.
    """
    return _Unpickler(io.BytesIO(content)).load()
