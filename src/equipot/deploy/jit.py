"""Settings around TorchScript."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


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
