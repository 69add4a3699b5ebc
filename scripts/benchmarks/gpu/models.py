"""Whole models on the device against plain torch on a CPU in float64: results, training steps, bits, neighbor
lists, and a deployed file through ASE.

The CPU has the same weights and the same edges, and no compiled kernels.
"""

import copy
import functools
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from operators import TOLERANCE, relative_error
from plan import Case, Context, Rows
from systems import (
    CUTOFF,
    MODELS,
    SPECIES,
    for_inference,
    inputs,
    model_settings,
    potential,
    structure,
)

from equipot import EquipotCalculator
from equipot.data import graph_from_atoms, neighbor_list
from equipot.data.neighbors import torch_neighbor_list
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.torchscript import write_torchscript
from equipot.graph import collate
from equipot.models.potential import Potential
from equipot.models.predict import predict
from equipot.ops.operators import plain_operators

DTYPES = {"float64": torch.float64, "float32": torch.float32}
SMALL = {"full": ("water", 192), "small": ("water", 24), "tiny": ("water", 24)}


def cases(context: Context) -> dict[str, Case]:
    chosen = ["l2 parity", "allegro"] if context.size == "tiny" else list(MODELS)
    found = {f"{name}, results": functools.partial(results, name) for name in chosen}
    found |= {
        f"{name}, training step": functools.partial(training, name) for name in ("l2 parity", "allegro")
    }
    found |= {"the same bits twice": same_bits, "neighbor lists": neighbors}
    return found | {f"deployed, {dtype}": functools.partial(deployed, dtype) for dtype in DTYPES}


def results(name: str, context: Context) -> Rows:
    """Atomic energies, forces and virials, with the radial functions as in training and as deployed."""
    kind, num_atoms = SMALL[context.size]
    rows = []
    for dtype in DTYPES:
        settings = model_settings(name, context.size)
        for tables in (False, True):
            model = potential(settings, kind, dtype)
            model = for_inference(model) if tables else model
            given = inputs(kind, num_atoms, "cpu")
            with plain_operators():
                expected = copy.deepcopy(model).double()(*given)
            there, moved = model.to(context.device), given.to(context.device)
            row = compare(["energies", "forces", "virials"], there(*moved), expected, dtype)
            what = "with tables" if tables else "as trained"
            rows.append({"model": name, "what": what, "dtype": dtype} | row)
            if settings["type"] != "nequip" or settings.get("radial_intervals", 1) is None:
                break  # no tables, or such as are not quite the model any more
    return rows


def compare(names: list[str], found, expected, dtype: str) -> dict:
    """The largest of the relative errors, and of what it is."""
    errors = [relative_error(a.detach().cpu(), b.detach()) for a, b in zip(found, expected, strict=True)]
    worst = int(np.argmax(errors))
    tolerance = TOLERANCE[DTYPES[dtype]]
    return {
        "error": errors[worst],
        "largest for": names[worst],
        "tolerance": tolerance,
        "ok": errors[worst] < tolerance,
    }


def training(name: str, context: Context) -> Rows:
    """Energy, forces and stress, and the gradient of a loss of them by every parameter."""
    kind, num_atoms = SMALL[context.size]
    settings = model_settings(name, context.size)
    graphs = [graph_from_atoms(structure(kind, num_atoms), SPECIES[kind], CUTOFF)] * 2
    graph = collate(graphs)
    rows = []
    for dtype in DTYPES:
        model = potential(settings, kind, dtype, training=True)
        with plain_operators():
            names, expected = _loss_gradients(copy.deepcopy(model).double(), graph)
        _, found = _loss_gradients(model.to(context.device), graph.to(context.device))
        row = compare(names, found, expected, dtype)
        rows.append({"model": name, "what": "gradient of a loss", "dtype": dtype} | row)
    return rows


def _loss_gradients(model: Potential, graph) -> tuple[list[str], list[torch.Tensor]]:
    """All gradients as one vector: one that nearly vanishes is judged by the others."""
    found = predict(model, graph)
    loss = found.energy.mean() + found.forces.square().mean() + found.stress.square().mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    names = ["energy", "forces", "stress", "gradient by the parameters"]
    return names, [found.energy, found.forces, found.stress, gradients]


def same_bits(context: Context) -> Rows:
    """Forces of the same structure, evaluated several times."""
    kind, num_atoms = ("silicon", 1728 if context.size == "full" else 64)
    rows = []
    for name in ("l2 parity", "allegro"):
        model = for_inference(potential(model_settings(name, context.size), kind)).to(context.device)
        given = inputs(kind, num_atoms, context.device)
        first, *others = [model(*given) for _ in range(4)]
        quantities = ("energies", "forces", "virials")
        differ = [q for n, q in enumerate(quantities) if any(not torch.equal(first[n], o[n]) for o in others)]
        note = f"not the same bits: {', '.join(differ)}" if differ else ""
        rows.append({"model": name, "what": "4 evaluations", "ok": not differ, "note": note})
    return rows


def neighbors(context: Context) -> Rows:
    """The cell list on the device against matscipy: the same edges in the same order."""
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    mixed = {
        "silicon": structure("silicon", 216),
        "silicon, cell smaller than the cutoff": structure("silicon", 8),
        "water": structure("water", 192),
        "slab": slab,
        "molecule": molecule("C60"),
        "one atom": Atoms("Cu", cell=[3.0, 3.1, 9.0], pbc=[True, True, False]),
    }
    rows = []
    for name, atoms in mixed.items():
        arguments = (atoms.positions, atoms.cell.array, atoms.pbc, CUTOFF)
        expected = neighbor_list(*arguments)
        found = [part.cpu().numpy() for part in torch_neighbor_list(*arguments, device=context.device)]
        same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
        edges = expected[0].shape[1]
        rows.append({"model": "neighbor list", "what": f"{name}, {edges:,} edges", "ok": same})
    return rows


def deployed(dtype: str, context: Context) -> Rows:
    """What ASE gets of a deployed file: energy, forces, stress."""
    kind, num_atoms = SMALL[context.size]
    atoms = structure(kind, num_atoms)
    path = deploy("l2 parity", kind, context, dtype)
    atoms.calc = EquipotCalculator(path, device=context.device)
    found = [atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress(voigt=False)]
    settings = model_settings("l2 parity", context.size)
    graph = graph_from_atoms(structure(kind, num_atoms), SPECIES[kind], CUTOFF)
    with plain_operators():
        expected = predict(potential(settings, kind, dtype).double(), graph)
    row = compare(
        ["energy", "forces", "stress"],
        [torch.as_tensor(np.asarray(item, dtype=np.float64)) for item in found],
        [expected.energy[0], expected.forces, expected.stress[0]],
        dtype,
    )
    return [{"model": "l2 parity", "what": "deployed file, ASE", "dtype": dtype} | row]


def deploy(name: str, kind: str, context: Context, dtype: str = "float32") -> Path:
    """A deployed file; written once for all cases."""
    path = context.folder / f"{name} {kind} {dtype} {context.size}.pt".replace(" ", "-")
    if not path.exists():
        settings = model_settings(name, context.size)
        model = potential(settings, kind, dtype)
        species = SPECIES[kind]
        write_torchscript(
            model, path, synthetic_structures(species, CUTOFF), source="synthetic structures",
            model_type=settings["type"], atomic_energies=[-1.0 - n for n in range(len(species))],
            weights="last", validation={}, config="",
        )  # fmt: skip
    return path
