"""A forecast of the memory that a training step takes, from two small ones."""

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from equipot.data.batching import Budget
from equipot.data.dataset import GraphDataset
from equipot.graph import AtomicGraph, collate
from equipot.machine import available_memory
from equipot.models.predict import predict
from equipot.quantities import QUANTITIES

_PROBE_FRAMES = 4
# Weights, their gradients, Adam's two moments and the average.
_COPIES_OF_WEIGHTS = 5


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operators make inside the block, while they are alive.

    What an operator allocates and frees within itself is not seen.
    """

    def __init__(self):
        super().__init__()
        self.bytes = 0
        self.peak = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.bytes -= size


@dataclass(frozen=True)
class MemoryForecast:
    """Bytes that the largest step may take on one device."""

    bytes: int
    edges: int  # computed together in that step


def forecast_memory(
    potential: nn.Module, dataset: GraphDataset, budget: Budget, num_parts: int, energy: bool = True
) -> MemoryForecast:
    """How much a step takes that is dealt out to ``num_parts`` parts.

    Measures the gradient of the frame with most edges, and of a few frames, on the CPU, and goes on from
    there in proportion to the edges: activations are nearly all, and belong to edges and their atoms.
    Without ``energy`` outputs alone are trained.
    """
    potential = copy.deepcopy(potential).cpu()  # a pretrained one may be on a GPU already
    edges = _largest_part(dataset, budget, num_parts)
    order = dataset.num_edges.argsort()[::-1]
    few = [dataset[int(i)] for i in order[:_PROBE_FRAMES]]
    largest, together = few[0], collate(few)
    memory = _measure(potential, largest, energy)
    if edges > largest.num_edges and together.num_edges > largest.num_edges:
        slope = (_measure(potential, together, energy) - memory) / (together.num_edges - largest.num_edges)
        memory += slope * (edges - largest.num_edges)
    weights = sum(weight.numel() * weight.element_size() for weight in potential.parameters())
    return MemoryForecast(int(memory + _COPIES_OF_WEIGHTS * weights), edges)


def _largest_part(dataset: GraphDataset, budget: Budget, num_parts: int) -> int:
    """Edges of the largest part of any step."""
    _, edges = budget.largest(dataset)
    largest = int(dataset.num_edges.max())
    # Dealt out evenly, but for one frame at most.
    return edges if num_parts == 1 else min(edges, edges // num_parts + largest)


def _measure(potential: nn.Module, graph: AtomicGraph, energy: bool = True) -> int:
    weights = [weight for weight in potential.parameters() if weight.requires_grad]
    with LiveTensors() as tensors:
        prediction = predict(potential, graph, energy=energy)
        known = (prediction.of(name) for name in QUANTITIES if name != "stress")
        loss = sum(value.square().sum() for value in known if value is not None)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        del gradients, loss, prediction
    return tensors.peak


def free_memory(kind: str) -> int | None:
    """Bytes that are free on the device (``cpu`` or ``cuda``) now; None where it cannot be told."""
    return torch.cuda.mem_get_info()[0] if kind == "cuda" else available_memory()


def describe_memory(forecast: MemoryForecast, free: int | None) -> str:
    """The line before a training; a warning with advice where memory will not do."""
    size, edges = _in_words(forecast.bytes), f"{forecast.edges:,} edges at once"
    text = f"Memory: about {size} for the largest step, of {edges}"
    if free is None:
        return text
    text += f"; {_in_words(free)} free"
    if forecast.bytes <= free:
        return text
    return (
        f"Warning: {text}. It will probably run out: raise training.accumulate to "
        f"{-(-forecast.bytes // max(free, 1)) + 1} or more, or lower training.batch_size."
    )


def _in_words(size: int) -> str:
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"
