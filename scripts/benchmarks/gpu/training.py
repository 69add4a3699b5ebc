"""A training step of molecules of the size of 3BPA: energies and forces, their loss, the gradient, Adam."""

import functools

import torch
from plan import Case, Context, Rows
from systems import CUTOFF, SPECIES, model_settings, molecules, potential
from timing import measure

from equipot.data import graph_from_atoms
from equipot.graph import collate
from equipot.models.predict import predict


def cases(context: Context) -> dict[str, Case]:
    counts = (5, 25) if context.size != "tiny" else (2,)
    names = ("l2 parity", "allegro") if context.size == "full" else ("l2 parity",)
    return {
        f"{name}, {count} molecules": functools.partial(step, name, count)
        for name in names
        for count in counts
    }


def step(name: str, count: int, context: Context) -> Rows:
    model = potential(model_settings(name, context.size), "molecule", training=True).to(context.device)
    frames = molecules(count)
    graph = collate([graph_from_atoms(atoms, SPECIES["molecule"], CUTOFF) for atoms in frames])
    graph = graph.to(context.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def take() -> None:
        optimizer.zero_grad(set_to_none=True)
        found = predict(model, graph)
        (found.energy.square().mean() + found.forces.square().mean()).backward()
        optimizer.step()

    if context.gpu:
        torch.cuda.reset_peak_memory_stats()
    times = measure(take, context.device, context.seconds / 2, repeats=5, warm_up=2)
    row = {"model": name, "molecules": count, "edges": graph.num_edges, **times.row()}
    if context.gpu:
        row["peak MB"] = torch.cuda.max_memory_allocated() / 1e6
    finite = all(torch.isfinite(p).all() for p in model.parameters())
    return [row | {"ok": bool(finite)} | ({} if finite else {"note": "parameters are not finite any more"})]
