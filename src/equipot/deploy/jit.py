"""TorchScript: models loaded and run by it."""

import functools
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipot.errors import ModelFileError
from equipot.ops.operators import load_operators


# Opened once: every task of a pool of processes brings the same content along.
@functools.lru_cache(maxsize=16)
def load_torchscript(content: bytes, path: Path, device: str, version: str) -> torch.jit.ScriptModule:
    """From a deployed file's ``content``; ``path`` and ``version``, of its torch, stand in messages.

    Raises ModelFileError if this torch cannot load it.
    """
    load_operators()  # the file may refer to them
    try:
        with quiet_jit():
            return torch.jit.load(io.BytesIO(content), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: torch {torch.__version__} cannot load this model (deployed with torch {version}): "
            f"{_first_line(error)}"
        ) from None


def run(module: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, **more: Any) -> tuple[Tensor, ...]:
    """Call a potential, scripted or not, in whatever mode the caller has put torch."""
    # Forces are gradients even where gradients are switched off; tensors made in inference mode cannot take
    # part in one, copies of them can.
    with torch.inference_mode(False), torch.enable_grad(), steady_execution():
        return module(*(x.clone() if x.is_inference() else x for x in inputs), **more)


def on_arrays(
    module: Callable[..., tuple[Tensor, ...]], inputs: Sequence[np.ndarray], device: str, **more: Any
):
    """`run` on arrays, by way of ``device``."""
    found = run(module, *(torch.as_tensor(array, device=device) for array in inputs), **more)
    return tuple(rows.detach().cpu().numpy() for rows in found)


def on_tensors(function: Callable[..., tuple[np.ndarray, ...]], inputs: Sequence[Tensor]):
    """A function of arrays on tensors."""
    found = function(*(x.detach().cpu().numpy() for x in inputs))
    return tuple(torch.from_numpy(rows).to(inputs[0].device) for rows in found)


@contextmanager
def quiet_jit() -> Iterator[None]:
    """TorchScript works and is deprecated; say so in the documentation, not in every user's terminal."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit", category=category)
        yield


def steady_execution() -> AbstractContextManager:
    """Run TorchScript without its profiling optimizer.

    That optimizer measures the first calls and recompiles. On a CPU it has no fusion to gain from. Measured
    with torch 2.13, one core, ethanol, NequIP of 3 layers with 16 channels, CPU time per call: with it
    0.23, 0.55 and 0.19 s for the first three calls and 8 ms (best) afterwards; without it 19 ms for the
    first and 7 ms afterwards; Allegro alike (0.12 s three times, then 6; without 20 ms, then 8). Freezing
    the module instead made no call faster. Without it, the first call also gives the same bits as the later
    ones. On a GPU it would compile fused kernels anew for shapes it has not seen (pytorch issue 70572), and
    the number of edges changes at every step of a dynamics.
    """
    return torch.jit.optimized_execution(False)


def _first_line(error: Exception) -> str:
    """TorchScript errors carry pages of stack; the message is the first line with text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
