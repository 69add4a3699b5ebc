"""From the device the configuration names to what Lightning is told."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from equipot.config import RunConfig
from equipot.devices import gpus_found, num_gpus, resolve_device
from equipot.errors import DeviceError

# Strategies under which every process holds all weights, as the average of the weights requires.
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")
_CHATTY = ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")


def choose_device(run: RunConfig) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        DeviceError: the configuration asks for a GPU, or for more GPUs, than this machine has, or for a
            strategy that is not supported.
    """
    if run.strategy not in _STRATEGIES:
        raise DeviceError(f"run.strategy is '{run.strategy}'; supported: {', '.join(_STRATEGIES)}.")
    kind = resolve_device("auto").type if run.device == "auto" else run.device
    if kind == "cuda" and num_gpus() == 0:
        raise DeviceError(f"run.device is cuda, but {gpus_found()}. Use cpu or auto.")
    if kind == "cuda" and run.devices > num_gpus():
        raise DeviceError(f"run.devices is {run.devices}, but {gpus_found()}.")
    return kind


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Inside the block Lightning's tips, device table and advice stay unsaid; its errors do not."""
    loggers = [logging.getLogger(name) for name in _CHATTY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in (r"lightning\..*", r"torchmetrics\..*", r"torch\.utils\.data.*"):
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
