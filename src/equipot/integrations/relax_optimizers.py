"""Minimizers of many structures at once: a step is a few operations on the rows of all of them.

A structure has rows of three numbers, Å: one for each atom and, where its cell moves too, two for its strain.
S structures have R rows in all. ``solve`` maps a gradient (R, 3) to the step that a model of the curvature
suggests.
"""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

Solve = Callable[[NDArray], NDArray]

MAX_STEP = 0.2  # Å
_NOISE = 5e-6  # eV for each row: so much energies of float32 models rise by rounding alone
_TINY = 1e-300


class Optimizer:
    """What is remembered: ``rows`` are arrays (..., R, 3), ``each`` (..., S)."""

    initial: ClassVar[dict[str, float]] = {}  # of ``each``; else 0, as rows

    def __init__(self):
        self.rows: dict[str, NDArray] = {}
        self.each: dict[str, NDArray] = {}
        self.counts = np.zeros(0, np.int64)  # (S,) rows of each structure

    def change(self, keep: NDArray, new: NDArray) -> None:
        """Go on with the structures where ``keep`` (S,) is true; others begin, with ``new`` (S',) rows."""
        kept = np.repeat(keep, self.counts)
        self.counts = np.concatenate([self.counts[keep], new])
        self.starts = np.cumsum(self.counts) - self.counts
        self.of_row = np.repeat(np.arange(len(self.counts)), self.counts)
        for name, values in self.rows.items():
            added = np.zeros((*values.shape[:-2], new.sum(), 3))
            self.rows[name] = np.concatenate([values[..., kept, :], added], axis=-2)
        for name, values in self.each.items():
            added = np.full((*values.shape[:-1], len(new)), self.initial.get(name, 0.0))
            self.each[name] = np.concatenate([values[..., keep], added], axis=-1)

    def dot(self, one: NDArray, other: NDArray) -> NDArray:
        """(S,) of (R, 3)."""
        return np.add.reduceat(np.einsum("ra,ra->r", one, other), self.starts)

    def longest(self, step: NDArray) -> NDArray:
        """(S,) of (R, 3): Å, the longest row of each structure."""
        return np.sqrt(np.maximum.reduceat(np.einsum("ra,ra->r", step, step), self.starts))

    def spread(self, values: NDArray) -> NDArray:
        """(S,) → (R, 1)."""
        return values.take(self.of_row)[:, None]

    def limited(self, step: NDArray, limit: NDArray | float) -> NDArray:
        """Shortened where a row is longer than the ``limit`` (Å)."""
        return step * self.spread(np.minimum(1.0, limit / np.maximum(self.longest(step), _TINY)))


class FIRE(Optimizer):
    """Source: Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006); numbers as in ASE."""

    initial: ClassVar[dict[str, float]] = {"dt": 0.1, "mixing": 0.1}

    def __init__(self):
        super().__init__()
        self.rows["velocity"] = np.zeros((0, 3))
        self.each = {name: np.zeros(0) for name in ("dt", "mixing", "downhill", "begun")}

    def next(self, x: NDArray, energy: NDArray, gradient: NDArray, solve: Solve) -> NDArray:
        """Where to evaluate after ``x`` (R, 3) Å, where the energy is (S,) eV, its gradient (R, 3) eV/Å."""
        force, velocity, each = -gradient, self.rows["velocity"], self.each
        good = self.dot(force, velocity) > 0
        along = np.sqrt(self.dot(velocity, velocity) / np.maximum(self.dot(force, force), _TINY))
        mixing = self.spread(each["mixing"])
        mixed = (1 - mixing) * velocity + mixing * self.spread(along) * force
        faster, uphill = good & (each["downhill"] > 5), ~good & (each["begun"] > 0)
        dt = np.where(faster, np.minimum(1.1 * each["dt"], 1.0), np.where(uphill, 0.5, 1.0) * each["dt"])
        mixing = np.where(faster, 0.99 * each["mixing"], np.where(uphill, 0.1, each["mixing"]))
        downhill = np.where(good, each["downhill"] + 1, 0.0)
        self.each = {"dt": dt, "mixing": mixing, "downhill": downhill, "begun": np.ones_like(dt)}
        self.rows["velocity"] = velocity = self.spread(good) * mixed + self.spread(dt) * force
        return x + self.limited(self.spread(dt) * velocity, MAX_STEP)


class LBFGS(Optimizer):
    """Quasi-Newton from a model of the curvature; a step that raises the energy is taken back and halved.

    Source: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.4.
    """

    initial: ClassVar[dict[str, float]] = {"limit": MAX_STEP, "scale": 1.0}
    memory = 25

    def __init__(self):
        super().__init__()
        self.rows = {"x": np.zeros((0, 3)), "gradient": np.zeros((0, 3))}
        self.rows |= {name: np.zeros((self.memory, 0, 3)) for name in ("s", "y")}
        self.each = {name: np.zeros(0) for name in ("energy", "begun", "limit", "scale")}
        self.each["rho"] = np.zeros((self.memory, 0))
        self._latest = 0

    def next(self, x: NDArray, energy: NDArray, gradient: NDArray, solve: Solve) -> NDArray:
        """As `FIRE.next`."""
        rows, each = self.rows, self.each
        begun = each["begun"] > 0
        moved = self._remember(x, gradient, begun, solve)
        rises = begun & (energy > each["energy"] + _NOISE * self.counts)
        lost = rises & (moved < 1e-3)  # not even so short a step goes down: begin anew from here
        back = rises & ~lost
        each["rho"][:, lost] = 0.0
        each["limit"] = np.where(back, 0.5 * moved, np.minimum(2.0 * each["limit"], MAX_STEP))
        each["limit"] = np.where(lost, 0.02, each["limit"])
        rows["x"] = np.where(self.spread(back), rows["x"], x)
        rows["gradient"] = np.where(self.spread(back), rows["gradient"], gradient)
        each["energy"] = np.where(back, each["energy"], energy)
        each["begun"] = np.ones_like(each["begun"])
        return rows["x"] + self.limited(self._direction(rows["gradient"], solve), each["limit"])

    def _remember(self, x: NDArray, gradient: NDArray, begun: NDArray, solve: Solve) -> NDArray:
        """Keep the last step and what the gradient changed by it; (S,) Å, how long the step was."""
        s, y = x - self.rows["x"], gradient - self.rows["gradient"]
        sy, yy = self.dot(s, y), self.dot(y, y)
        good = begun & (sy > 1e-8 * np.sqrt(self.dot(s, s) * yy))
        self._latest = (self._latest + 1) % self.memory
        self.rows["s"][self._latest] = s
        self.rows["y"][self._latest] = y
        self.each["rho"][self._latest] = np.where(good, 1.0 / np.where(good, sy, 1.0), 0.0)
        scale = sy / np.maximum(self.dot(y, solve(y)), _TINY)
        self.each["scale"] = np.where(good, scale, self.each["scale"])
        return np.where(begun, self.longest(s), 0.0)

    def _direction(self, gradient: NDArray, solve: Solve) -> NDArray:
        order = [(self._latest - n) % self.memory for n in range(self.memory)]
        order = [n for n in order if self.each["rho"][n].any()]
        q, factors = gradient.copy(), {}
        for n in order:
            factors[n] = self.each["rho"][n] * self.dot(self.rows["s"][n], q)
            q -= self.spread(factors[n]) * self.rows["y"][n]
        q = self.spread(self.each["scale"]) * solve(q)
        for n in reversed(order):
            back = self.each["rho"][n] * self.dot(self.rows["y"][n], q)
            q += self.spread(factors[n] - back) * self.rows["s"][n]
        return -q


OPTIMIZERS = {"lbfgs": LBFGS, "fire": FIRE}
