"""What a training computes on: a CPU or GPUs, in one process or many, and what processes add up."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor

from equipot.config import RunConfig
from equipot.devices import gpus_found, num_gpus, resolve_device
from equipot.errors import DeviceError, TrainingError

# Strategies under which every process holds all weights, as the average of the weights requires.
_STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false")


def choose_device(run: RunConfig) -> str:
    """``cpu`` or ``cuda``.

    Raises:
        DeviceError: the configuration asks for a GPU, or for more GPUs, than this machine has, or for a
            strategy that is not supported.
    """
    if run.strategy not in _STRATEGIES:
        raise DeviceError(f"run.strategy is '{run.strategy}'; supported: {', '.join(_STRATEGIES)}.")
    kind = resolve_device("auto") if run.device == "auto" else run.device
    if kind == "cuda" and num_gpus() == 0:
        raise DeviceError(f"run.device is cuda, but {gpus_found()}. Use cpu or auto.")
    if kind == "cuda" and run.devices > num_gpus():
        hint = ""
        if find_launcher() is not None:
            hint = " Each task must see all GPUs of its node (srun: --gpus-per-node=N --gpu-bind=none)."
        raise DeviceError(f"run.devices is {run.devices}, but {gpus_found()}.{hint}")
    return kind


@torch.no_grad()
def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, in one message for each dtype.

    The tensors must have the same shapes on every process. Does nothing where there is one process.

    Raises:
        TrainingError: another process has died.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        try:
            distributed.all_reduce(flat)
        except RuntimeError as error:
            raise TrainingError(
                "Another process of this training has ended or cannot be reached; its own message says why. "
                f"The last checkpoint is intact: go on with --resume. ({error})"
            ) from error
        pieces = flat.split([tensor.numel() for tensor in group])
        for tensor, piece in zip(group, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


@dataclass(frozen=True)
class Launcher:
    """A program that has started all processes of a job already."""

    name: str
    devices: int  # processes on each node
    nodes: int


def find_launcher(environment: Mapping[str, str] = os.environ) -> Launcher | None:
    """torchrun or srun, if one of them has started this process; None if it was started alone.

    Raises:
        TrainingError: srun starts different numbers of tasks on the nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        each = int(environment["LOCAL_WORLD_SIZE"])
        return Launcher("torchrun", each, int(environment["WORLD_SIZE"]) // each)
    # An interactive shell on a node (salloc, srun bash) has the job's variables, too, but starts no tasks.
    if "SLURM_NTASKS" in environment and environment.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        tasks, nodes = int(environment["SLURM_NTASKS"]), int(environment.get("SLURM_NNODES", "1"))
        started_by_srun = "SLURM_STEP_ID" in environment and environment["SLURM_STEP_ID"] != "4294967291"
        if tasks == 1 or not started_by_srun:
            return None
        if tasks % nodes:
            raise TrainingError(
                f"srun has started {tasks} tasks on {nodes} nodes. Every node needs the same number: set "
                "--ntasks-per-node to the number of GPUs on a node."
            )
        return Launcher("srun", tasks // nodes, nodes)
    return None


def adopt_launcher(run: RunConfig, launcher: Launcher | None) -> RunConfig:
    """``run`` with the devices and nodes that the launcher has started processes for.

    Raises:
        TrainingError: the configuration asks for other numbers.
    """
    if launcher is None:
        return run
    for key in ("devices", "nodes"):
        asked, started = getattr(run, key), getattr(launcher, key)
        if key in run.model_fields_set and asked not in (1, started):
            raise TrainingError(
                f"run.{key} is {asked}, but {launcher.name} has started processes for {started}. "
                f"Leave run.{key} out: {launcher.name} decides."
            )
    return run.model_copy(update={"devices": launcher.devices, "nodes": launcher.nodes})
