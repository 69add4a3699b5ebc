"""A model as a program: the steps that an evaluation takes, and the weights they use.

Modules add their own steps (``steps`` methods), so an architecture is written once; the engine
(csrc/evaluator.h) runs them without torch. docs/model_format.md says what each step computes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.numpy
from torch import Tensor


class Program:
    """Steps over named arrays: rows of atoms or edges."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = {"version": 1}
        self.steps: list[dict[str, Any]] = []
        self.weights: dict[str, np.ndarray] = {}
        self.output_rows: str | None = None  # the array of atoms with the irreps of further outputs
        self._last_layer: dict[str, Any] = {}

    def require(self, version: int) -> None:
        """An engine must read this version (program_version in csrc/program.h) to run the program rightly."""
        self.facts["version"] = max(self.facts["version"], version)

    def add(self, kind: str, inputs: Sequence[str] = (), **facts: Any) -> str:
        """Add a step; the name of the array that it makes. Tensors among the facts become weights."""
        name = f"{kind}_{len(self.steps)}"
        step = {key: self.stored(f"{name}.{key}", value) for key, value in facts.items()}
        self.steps.append({"do": kind, "out": name, "inputs": list(inputs), **step})
        return name

    def ends_with(self, array: str, width: int, first: int = 0, factor: float = 1.0) -> None:
        """The last layer is a linear map of ``width`` numbers of ``array``, from ``first`` on.

        For an array of edges: of ``factor`` times the sum, at the center, of the last hidden layer of the
        perceptron that makes it.
        """
        self._last_layer = {"array": array, "first": first, "width": width, "factor": factor}

    @property
    def feature_width(self) -> int:
        """How many numbers the last layer is given; 0: the model does not say."""
        return self._last_layer.get("width", 0)

    def add_uncertainty(self, factor: Tensor) -> None:
        """R (feature_width, feature_width), lower triangular: |R f| is the deviation of an energy."""
        self.facts["uncertainty"] = self.stored("uncertainty", {**self._last_layer, "weights": factor})

    def stored(self, name: str, value: Any) -> Any:
        """What stands in the program for a value: for a tensor of floating-point numbers, its name."""
        if isinstance(value, Tensor) and value.is_floating_point():
            self.weights[name] = np.ascontiguousarray(value.detach().cpu().numpy())
            return name
        if isinstance(value, Tensor):
            return value.tolist()
        if isinstance(value, Mapping):
            return {key: self.stored(f"{name}.{key}", item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.stored(f"{name}.{number}", item) for number, item in enumerate(value)]
        return value

    def files(self) -> dict[str, bytes]:
        """Entries of a model file, by name."""
        program = json.dumps({**self.facts, "steps": self.steps}).encode()
        return {
            "engine/program.json": program,
            "engine/weights.safetensors": safetensors.numpy.save(self.weights),
        }
