"""The benchmark's worker for MACE, in mace-torch's own environment."""

import itertools
from collections.abc import Callable
from importlib.metadata import version

import ase.io
import numpy as np
import torch
from mace import data, modules
from mace.calculators import MACECalculator
from mace.tools import AtomicNumberTable, torch_geometric
from protocol import serve


def prepare(request: dict) -> tuple[dict, Callable[[], None]]:
    """Facts and one step of what ``request`` asks for."""
    torch.set_num_threads(request["threads"])
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model = build(request)
    facts = {
        "versions": {name: version(name) for name in ("mace-torch", "torch", "e3nn")},
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    task = {"train": training_step, "md": md_step}[request["task"]]
    edges, step = task(model, request)
    return {**facts, "edges": edges}, step


def build(request: dict) -> modules.ScaleShiftMACE:
    """MACE with the settings of the request and random weights."""
    from e3nn import o3  # after mace, which lets torch load the constants of this e3nn

    settings = request["mace"]
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=settings["cutoff"],
        num_bessel=settings["num_bessel"],
        num_polynomial_cutoff=settings["polynomial_cutoff"],
        max_ell=settings["max_ell"],
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=settings["layers"],
        num_elements=len(request["species"]),
        hidden_irreps=o3.Irreps(settings["hidden_irreps"]),
        MLP_irreps=o3.Irreps(settings["readout_irreps"]),
        gate=torch.nn.functional.silu,
        atomic_energies=np.array(request["atomic_energies"]),
        avg_num_neighbors=request["avg_num_neighbors"],
        atomic_numbers=numbers(request),
        correlation=settings["correlation"],
        radial_MLP=settings["radial_hidden"],
        atomic_inter_scale=request["force_rms"],
        atomic_inter_shift=0.0,
    )


def numbers(request: dict) -> list[int]:
    """Atomic numbers of the species, ascending."""
    return [ase.data.atomic_numbers[symbol] for symbol in request["species"]]


def training_step(model: torch.nn.Module, request: dict) -> tuple[float, Callable[[], None]]:
    """Mean edges per batch, and an optimisation step that takes the batches in turn."""
    batches = read_batches(request)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=request["learning_rate"], fused=True)
    queue = itertools.cycle(batches)

    def step() -> None:
        batch = next(queue)
        optimizer.zero_grad(set_to_none=True)
        out = model(batch.to_dict(), training=True, compute_force=True)
        energy_error = (out["energy"] - batch.energy) / (batch.ptr[1:] - batch.ptr[:-1])
        loss = energy_error.square().mean() + (out["forces"] - batch.forces).square().mean()
        loss.backward()
        optimizer.step()
        if not loss.isfinite():
            raise FloatingPointError("the loss is not finite")

    return sum(batch.edge_index.shape[1] for batch in batches) / len(batches), step


def read_batches(request: dict) -> list:
    """The structures with their neighbor lists and labels, in batches."""
    keys = data.KeySpecification(info_keys={"energy": "ref_energy"}, arrays_keys={"forces": "ref_forces"})
    table = AtomicNumberTable(numbers(request))
    graphs = []
    for atoms in ase.io.read(request["structures"], ":"):
        atoms.info["ref_energy"] = atoms.get_potential_energy()
        atoms.arrays["ref_forces"] = atoms.get_forces()
        configuration = data.config_from_atoms(atoms, key_specification=keys)
        graphs.append(data.AtomicData.from_config(configuration, table, request["mace"]["cutoff"]))
    return list(torch_geometric.dataloader.DataLoader(graphs, request["batch_size"], shuffle=False))


def md_step(model: torch.nn.Module, request: dict) -> tuple[float, Callable[[], None]]:
    """Edges of the structure, and a step of a random walk with forces from MACE's calculator."""
    atoms = ase.io.read(request["structures"])
    atoms.calc = MACECalculator(models=model.eval(), device="cpu", default_dtype="float32")
    random = np.random.default_rng(0)
    pbc = tuple(bool(periodic) for periodic in atoms.pbc)
    edge_index = data.get_neighborhood(
        atoms.positions, request["mace"]["cutoff"], pbc, atoms.cell.array.copy()
    )[0]

    def step() -> None:
        atoms.positions += random.normal(scale=request["displacement"], size=atoms.positions.shape)
        atoms.get_forces()

    return edge_index.shape[1], step


if __name__ == "__main__":
    serve(prepare)
