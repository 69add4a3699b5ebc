"""The benchmark's worker for equipot: training steps and ASE molecular dynamics."""

import itertools
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import torch
from protocol import serve
from pydantic import TypeAdapter

import equipot
from equipot import EquipotCalculator, keep_memory
from equipot.config import LossConfig
from equipot.config.model import ModelConfig
from equipot.data import frame_from_atoms, to_graph
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.export import deploy
from equipot.deploy.torchscript import write_torchscript
from equipot.graph import collate
from equipot.interop.importer import MODELS, import_model
from equipot.models.build import build_potential
from equipot.models.potential import Potential
from equipot.models.predict import predict
from equipot.ops.build import kernels_available
from equipot.quantities import QUANTITIES
from equipot.training.loss import Loss, label_errors


def prepare(request: dict) -> tuple[dict, Callable[[], None]]:
    """Facts and one step of what ``request`` asks for."""
    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    if "pretrained" in request:
        return pretrained(request)
    config = TypeAdapter(ModelConfig).validate_python(request["model"])
    potential = build_potential(
        config,
        request["species"],
        request["avg_num_neighbors"],
        request["atomic_energies"],
        request["force_rms"],
    )
    facts = {
        "versions": {"equipot": equipot.__version__, "torch": torch.__version__},
        "kernels": kernels_available(),
        "parameters": sum(p.numel() for p in potential.parameters()),
        "dtype": str(potential.dtype).removeprefix("torch."),
    }
    task = {"train": training_step, "md": md_step}[request["task"]]
    edges, step = task(potential, request)
    return {**facts, "edges": edges}, step


def pretrained(request: dict) -> tuple[dict, Callable[[], None]]:
    """The same of a model of another code, from the package in its environment."""
    where = "import importlib.util; print(importlib.util.find_spec('sevenn').origin)"
    command = [request["pythons"]["sevennet"], "-c", where]
    package = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).parent
    with tempfile.TemporaryDirectory() as folder:
        source = package / "pretrained_potentials" / MODELS[request["pretrained"]][0]
        imported = import_model(str(source), Path(folder) / "model.ckpt").checkpoint
        metadata = deploy(Path(folder) / "model.ckpt", Path(folder) / "model.pt")
        edges, step = walk(Path(folder) / "model.pt", request)
    facts = {
        "versions": {"equipot": equipot.__version__, "torch": torch.__version__},
        "parameters": sum(p.numel() for p in imported.potential.parameters()),
        "dtype": metadata.dtype,
    }
    return {**facts, "edges": edges}, step


def training_step(potential: Potential, request: dict) -> tuple[float, Callable[[], None]]:
    """Mean edges per batch, and an optimisation step that takes the batches in turn."""
    cutoff, size = request["model"]["cutoff"], request["batch_size"]
    frames = [frame_from_atoms(atoms) for atoms in ase.io.read(request["structures"], ":")]
    graphs = [to_graph(frame, request["species"], cutoff) for frame in frames]
    batches = [collate(graphs[i : i + size]) for i in range(0, len(graphs), size)]
    loss = Loss(LossConfig(energy=1.0, forces=1.0, stress=0.0))
    potential.train()
    optimizer = torch.optim.Adam(potential.parameters(), lr=request["learning_rate"], fused=True)
    queue = itertools.cycle(batches)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prediction = predict(potential, graph := next(queue))
        errors = label_errors(prediction, graph)
        rows = [q.components * q.choose(graph.num_structures, graph.num_atoms) for q in QUANTITIES.values()]
        counts = torch.tensor(rows, dtype=torch.float64)  # of known components, as in LABELS
        total = loss.total(loss.sums(errors), counts, prediction)
        total.backward()
        optimizer.step()
        if not total.isfinite():
            raise FloatingPointError("the loss is not finite")

    return sum(batch.num_edges for batch in batches) / len(batches), step


def md_step(potential: Potential, request: dict) -> tuple[float, Callable[[], None]]:
    """Edges of the structure, and a step of a random walk with forces from a deployed file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        write_torchscript(
            potential,
            path,
            synthetic_structures(request["species"], request["model"]["cutoff"]),
            source="synthetic structures",
            model_type=request["model"]["type"],
            atomic_energies=request["atomic_energies"],
            weights="last",
            validation={},
            config="",
        )
        return walk(path, request)


def walk(model: Path, request: dict) -> tuple[float, Callable[[], None]]:
    """The same from a deployed file, which is not read again."""
    keep_memory()
    atoms = ase.io.read(request["structures"])
    atoms.calc = EquipotCalculator(model, device="cpu")
    random = np.random.default_rng(0)
    edge_index = atoms.calc.neighbors.edges(atoms.positions, atoms.cell.array, atoms.pbc)[1]

    def step() -> None:
        atoms.positions += random.normal(scale=request["displacement"], size=atoms.positions.shape)
        atoms.get_forces()

    return edge_index.shape[1], step


if __name__ == "__main__":
    serve(prepare)
