"""Times by three clocks: the GPU's (events), the wall's, and the host's until a call returns."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Medians in ms. On a CPU all three are the same clock."""

    device: float
    wall: float
    host: float

    def row(self) -> dict:
        return {"wall ms": self.wall, "device ms": self.device, "host ms": self.host}


def wait(device: str) -> None:
    """Until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(call: Callable, device: str, seconds: float, repeats: int = 10, warm_up: int = 3) -> Times:
    """Of up to ``repeats`` calls after ``warm_up`` of them, fewer where ``seconds`` would not do."""
    end = time.monotonic() + seconds
    for number in range(warm_up):
        start = time.monotonic()
        call()
        wait(device)
        took = time.monotonic() - start
        if number and end - time.monotonic() < 3 * took:
            break
    found = []
    while len(found) < repeats and (not found or end - time.monotonic() > 1.5 * took):
        found.append(_once(call, device))
        took = found[-1].wall / 1e3
    return Times(*(statistics.median(getattr(t, name) for t in found) for name in ("device", "wall", "host")))


def _once(call: Callable, device: str) -> Times:
    if device != "cuda":
        start = time.perf_counter()
        call()
        took = 1e3 * (time.perf_counter() - start)
        return Times(took, took, took)
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start = time.perf_counter()
    first.record()
    call()
    returned = time.perf_counter()
    last.record()
    torch.cuda.synchronize()
    ended = time.perf_counter()
    return Times(first.elapsed_time(last), 1e3 * (ended - start), 1e3 * (returned - start))
