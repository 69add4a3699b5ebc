"""Evaluations of growing structures: in Python, as TorchScript, and steps of molecular dynamics through ASE;
and evaluations whose number of edges changes from one to the next.
"""

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from models import deploy
from plan import Case, Context, Rows
from systems import (
    NEIGHBORS,
    Inputs,
    for_inference,
    inputs,
    model_settings,
    potential,
    structure,
)
from timing import measure, wait

from equipot import EquipotCalculator
from equipot.deploy.jit import quiet_jit, steady_execution
from equipot.deploy.load import load_deployed

# First one model through all sizes, then ASE, then other models at a few sizes.
SIZES = {
    "full": {"silicon": [8, 64, 216, 1728, 13_824, 110_592], "water": [192, 12_288, 81_000]},
    "small": {"silicon": [8, 64, 216], "water": [24]},
    "tiny": {"silicon": [8, 64], "water": [24]},
}
OTHERS = {
    "full": {"silicon": [64, 1728, 13_824], "water": [12_288]},
    "small": {"silicon": [64]},
    "tiny": {"silicon": [8]},
}
DISPLACEMENT = 0.01  # Å per step and coordinate of the random walk that stands for molecular dynamics


def cases(context: Context) -> dict[str, Case]:
    found: dict[str, Case] = {}
    for kind, sizes in SIZES[context.size].items():
        for size in sizes:
            found[f"l2 parity, {kind} {size}"] = functools.partial(evaluations, "l2 parity", kind, size)
    for kind, sizes in SIZES[context.size].items():
        for size in sizes:
            found[f"ASE, {kind} {size}"] = functools.partial(dynamics, kind, size)
    for model in ("l2", "allegro", "l3 parity"):
        for kind, sizes in OTHERS[context.size].items():
            for size in sizes:
                found[f"{model}, {kind} {size}"] = functools.partial(evaluations, model, kind, size)
    return found


def evaluations(name: str, kind: str, num_atoms: int, context: Context) -> Rows:
    """Energies, forces and virials, edges given; eager and TorchScript."""

    def run() -> Rows:
        model = for_inference(potential(model_settings(name, context.size), kind)).to(context.device)
        given = inputs(kind, num_atoms, context.device)
        rows = [_evaluate("eager", lambda: model(*given), given, context)]
        with quiet_jit():
            scripted = torch.jit.script(model)
        with steady_execution():
            rows.append(_evaluate("TorchScript", lambda: scripted(*given), given, context))
        return rows

    common = {"model": name, "structure": kind, "atoms": num_atoms}
    return [common | row for row in _if_it_fits(run, name, kind, num_atoms, context)]


def _evaluate(how: str, call: Callable, given: Inputs, context: Context) -> dict:
    if context.gpu:
        torch.cuda.reset_peak_memory_stats()
    times = measure(call, context.device, context.seconds / 3)
    row = {"how": how, "edges": given.num_edges, **times.row()}
    return row | _per_atom(times.wall, given.num_atoms, f"{how} ms", context)


def _per_atom(wall: float, num_atoms: int, key: str, context: Context) -> dict:
    row = {"µs/atom": 1e3 * wall / num_atoms}
    if context.gpu:
        row["peak kB/atom"] = torch.cuda.max_memory_allocated() / num_atoms / 1e3
    return row


def _if_it_fits(run: Callable, name: str, kind: str, num_atoms: int, context: Context) -> Rows:
    """What ``run`` finds, or a row that says why it was left out. Tells later cases what it needed."""
    reason = _too_large(name, kind, num_atoms, context)
    if reason:
        return [{"note": reason}]
    start = time.monotonic()
    try:
        rows = run()
    except torch.OutOfMemoryError as error:
        inputs.cache_clear()
        torch.cuda.empty_cache()
        return [{"note": f"does not fit into the memory: {str(error).split('.')[0]}"}]
    spent = time.monotonic() - start
    edges = NEIGHBORS[kind] * num_atoms
    known = {f"{name}: s per edge": min(row.get("wall ms", spent * 1e3) for row in rows) / 1e3 / edges}
    if context.gpu:
        known[f"{name}: bytes per edge"] = max(row["peak kB/atom"] for row in rows) * 1e3 * num_atoms / edges
    # Only what is large enough says something about larger ones.
    return [row | ({"known": known} if num_atoms >= 1000 or not context.gpu else {}) for row in rows]


def _too_large(name: str, kind: str, num_atoms: int, context: Context) -> str:
    edges = NEIGHBORS[kind] * num_atoms
    seconds = 8 * edges * context.known.get(f"{name}: s per edge", 0.0)  # warm-ups and repeats, twice
    if seconds > context.seconds:
        return f"left out: would take about {seconds:.0f} s, {context.seconds:.0f} s are left"
    if context.gpu:
        needed = edges * context.known.get(f"{name}: bytes per edge", 0.0)
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        if needed > free:
            return f"left out: would need about {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
    return ""


def dynamics(kind: str, num_atoms: int, context: Context) -> Rows:
    """A deployed file through ASE, all atoms moving a little; neighbor lists and copies included."""

    def run() -> Rows:
        atoms = structure(kind, num_atoms)
        atoms.calc = EquipotCalculator(deploy("l2 parity", kind, context), device=context.device)
        random = np.random.default_rng(0)
        if context.gpu:
            torch.cuda.reset_peak_memory_stats()

        def step() -> None:
            atoms.positions += random.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
            atoms.get_forces()

        times = measure(step, context.device, context.seconds / 2)
        builds = atoms.calc.neighbors.builds
        row = {"how": "ASE, deployed file", **times.row(), "note": f"{builds} neighbor lists built"}
        return [row | _per_atom(times.wall, num_atoms, "ASE ms", context)]

    common = {"model": "l2 parity", "structure": kind, "atoms": num_atoms}
    return [common | row for row in _if_it_fits(run, "l2 parity", kind, num_atoms, context)]


# ---- numbers of edges that change --------------------------------------------------------------------------

EVALUATIONS = 25


def changing_cases(context: Context) -> dict[str, Case]:
    return {
        "as equipot runs it": functools.partial(changing, None),
        "torch's profiling executor on": functools.partial(changing, True),
        "torch's profiling executor off": functools.partial(changing, False),
    }


def changing(profiling: bool | None, context: Context) -> Rows:
    """Calls of a freshly loaded file, each with one edge less than the last."""
    num_atoms = {"full": 216, "small": 64, "tiny": 8}[context.size]
    model = load_deployed(deploy("l2 parity", "silicon", context), context.device, "torch")
    given = inputs("silicon", num_atoms, context.device)

    def evaluate(*fewer) -> None:
        if profiling is None:
            model(*fewer)
        else:
            with torch.jit.optimized_execution(profiling):
                model.module(*fewer)

    times = []
    for k in range(EVALUATIONS):
        kept = torch.arange(k, given.num_edges, device=context.device)
        fewer = (given.edge_vec[kept], given.edge_index[:, kept], given.atom_types, given.owned)
        wait(context.device)
        start = time.perf_counter()
        evaluate(*fewer)
        wait(context.device)
        times.append(1e3 * (time.perf_counter() - start))
    median, worst = statistics.median(times[1:]), max(times[1:])
    row = {"executor": {None: "as equipot runs it", True: "profiling", False: "plain"}[profiling]}
    row |= {"atoms": num_atoms, "first ms": times[0], "median ms": median, "worst ms": worst}
    return [row | {"worst/median": worst / median, "each ms": " ".join(f"{t:.3g}" for t in times)}]
