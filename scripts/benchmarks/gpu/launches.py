"""What one evaluation asks of torch and of the GPU: operators, kernels, waits, copies.

Operators are counted by a dispatch mode, on any device; among them those whose result the host must wait for
on a GPU. Kernels, waits and copies are counted by torch's profiler, and the lines that wait are named by
torch's own debug mode: both on a GPU only.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Callable

import torch
from models import deploy
from plan import Case, Context, Rows
from systems import SPECIES, for_inference, inputs, model_settings, molecules, potential
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from equipot.data import graph_from_atoms
from equipot.deploy.load import load_deployed
from equipot.graph import collate
from equipot.models.predict import predict

# Operators whose result, or the shape of it, the host must know.
WAITING = {
    *("_local_scalar_dense", "nonzero", "bincount", "unique_dim", "_unique2", "unique_consecutive"),
    *("masked_select", "equal", "repeat_interleave", "is_nonzero"),
}


# They compute nothing.
VIEWS = {
    *(
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "narrow",
        "new_empty",
    ),
    *("permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t"),
    *("transpose", "unbind", "unsqueeze", "_unsafe_view", "view"),
}


class Counting(TorchDispatchMode):
    """Counts operators that compute something, and those that wait."""

    def __init__(self):
        super().__init__()
        self.operators, self.waiting = Counter(), Counter()

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.name().split("::")[-1].split(".")[0]
        if name not in VIEWS:
            self.operators[function.namespace] += 1
        if name in WAITING or (name == "index" and _has_mask(arguments)):
            self.waiting[name] += 1
        return function(*arguments, **(keywords or {}))


def _has_mask(arguments) -> bool:
    return any(item is not None and item.dtype == torch.bool for item in arguments[1])


def cases(context: Context) -> dict[str, Case]:
    small, large = {"full": (64, 1728), "small": (8, 64), "tiny": (8, 8)}[context.size]
    names = ["l2 parity", "l2", "l3 parity", "allegro"]
    found = {f"{name}, eager": functools.partial(evaluation, name, small) for name in names}
    found["l2 parity, deployed"] = functools.partial(deployed, small)
    found["l2 parity, larger"] = functools.partial(evaluation, "l2 parity", large)
    found["training step"] = training
    return found


def evaluation(name: str, num_atoms: int, context: Context) -> Rows:
    """Of a model with tables, in Python."""
    model = for_inference(potential(model_settings(name, context.size), "silicon")).to(context.device)
    given = inputs("silicon", num_atoms, context.device)
    return _count(f"{name}, eager", lambda: model(*given), num_atoms, context)


def deployed(num_atoms: int, context: Context) -> Rows:
    """Of a file, as the calculator evaluates it."""
    model = load_deployed(deploy("l2 parity", "silicon", context), context.device, "torch")
    given = inputs("silicon", num_atoms, context.device)
    return _count("l2 parity, deployed", lambda: model(*given), num_atoms, context)


def training(context: Context) -> Rows:
    """Forward, backward, without the optimizer."""
    model = potential(model_settings("l2 parity", context.size), "molecule", training=True)
    model = model.to(context.device)
    graphs = [graph_from_atoms(atoms, SPECIES["molecule"], 5.0) for atoms in molecules(5)]
    graph = collate(graphs).to(context.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        found = predict(model, graph)
        (found.energy.square().sum() + found.forces.square().sum()).backward()

    return _count("l2 parity, training step", step, graph.num_atoms, context)


def _count(name: str, call: Callable, num_atoms: int, context: Context) -> Rows:
    for _ in range(3):
        call()
    with Counting() as counted:
        call()
    aten, own = counted.operators["aten"], counted.operators["equipot"]
    row = {"evaluation": name, "atoms": num_atoms, "aten operators": aten, "equipot operators": own}
    if not context.gpu:  # kernels for CPUs look at numbers where those for GPUs do not
        return [row]
    row |= {"operators that wait": sum(counted.waiting.values())} | _profiled(call)
    notes = [f"{count} × {operator}" for operator, count in counted.waiting.items()]
    return [row | {"note": "; ".join(notes + _waiting_lines(call))}]


def _profiled(call: Callable) -> dict:
    """Kernels started, calls that wait for the GPU, and copies by direction."""
    calls, device = _events(call)
    nothing, _ = _events(lambda: None)  # the profiler itself waits for the device
    calls.subtract(nothing)

    def count(events: Counter, *words: str) -> int:
        return sum(times for key, times in events.items() if any(word in key for word in words))

    found = Counter({key: times for key, (times, _) in device.items()})
    row = {
        "launches": count(calls, "LaunchKernel"),
        "kernels": found.total() - count(found, "Memcpy", "Memset"),
        "waits": count(calls, "StreamSynchronize", "DeviceSynchronize", "CtxSynchronize", "EventSynchronize"),
        "copies to host": count(found, "Memcpy DtoH"),
        "copies to device": count(found, "Memcpy HtoD"),
        "copies on device": count(found, "Memcpy DtoD"),
        "kernels ms": sum(microseconds for _, microseconds in device.values()) / 1e3,
    }
    if not row["kernels"]:
        raise RuntimeError("torch's profiler saw no kernels: it cannot read this driver's records")
    return row


def _events(call: Callable) -> tuple[Counter, dict[str, tuple[int, float]]]:
    """How often each call of CUDA was made; how often and how long (µs) each kernel and copy ran."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    calls, device = Counter(), {}
    for event in profiler.key_averages():
        if event.device_type == DeviceType.CUDA:
            device[event.key] = (event.count, event.self_device_time_total)
        else:
            calls[event.key] += event.count
    return calls, device


def _waiting_lines(call: Callable) -> list[str]:
    """Lines of Python that make the host wait, most frequent first."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    lines = [w for w in caught if "synchroniz" in str(w.message)]
    places = Counter("/".join(w.filename.split("/")[-2:]) + f":{w.lineno}" for w in lines)
    return [f"{count} × {place} waits" for place, count in places.most_common(8)]
