"""The benchmark's worker for NequIP and nequip-allegro, in an environment of their own.

Modes: ``eager``; ``compile``, the training mode of that name (torch.compile); ``aotinductor``, a file from
nequip-compile, NequIP's way to molecular dynamics.
"""

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import ase.io
import lightning
import numpy as np
import torch
from allegro.model import AllegroModel
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.integrations.ase import NequIPCalculator
from nequip.model import NequIPGNNModel
from nequip.train import NequIPLightningModule
from nequip.utils import get_current_code_versions
from nequip.utils.global_state import set_global_state
from protocol import last_line, serve

BUILDERS = {"nequip": NequIPGNNModel, "allegro": AllegroModel}


def prepare(request: dict) -> tuple[dict, Callable[[], None]]:
    """Facts and one step of what ``request`` asks for."""
    set_global_state()
    torch.set_num_threads(request["threads"])
    mode = "compile" if request["mode"] == "compile" else "eager"
    model = BUILDERS[request["model"]["type"]](**settings(request), compile_mode=mode)
    names = ("nequip", "nequip-allegro", "torch", "e3nn")
    facts = {
        "versions": {name: version(name) for name in names},
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    task = {"train": training_step, "md": md_step}[request["task"]]
    edges, step = task(model, request)
    return {**facts, "edges": edges}, step


def settings(request: dict) -> dict:
    """Arguments of NequIP's or Allegro's model builder, from the keys of equipot's section ``model``."""
    model = request["model"]
    common = {
        "seed": 0,
        "model_dtype": "float32",
        "type_names": request["species"],
        "r_max": model["cutoff"],
        "l_max": model["l_max"],
        "parity": model["parity"],
        "num_layers": model["layers"],
        "avg_num_neighbors": request["avg_num_neighbors"],
        "per_type_energy_scales": dict.fromkeys(request["species"], request["force_rms"]),
        "per_type_energy_shifts": dict(zip(request["species"], request["atomic_energies"], strict=True)),
    }
    basis = {"num_bessels": model["num_bessel"], "polynomial_cutoff_p": model["polynomial_cutoff"]}
    if model["type"] == "nequip":
        return {
            **common,
            **basis,
            "num_features": model["channels"],
            # The self-connection acts on this embedding; equipot's acts on the species.
            "type_embed_num_features": model.get("embedding_channels", len(request["species"])),
            "radial_mlp_depth": len(model["radial_hidden"]),
            "radial_mlp_width": model["radial_hidden"][0],
        }
    return {
        **common,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", **basis},
        "num_scalar_features": model["scalar_channels"],
        "num_tensor_features": model["channels"],
        # The embedding is a dense layer of its own in front of this perceptron.
        "scalar_embed_mlp_hidden_layers_depth": len(model["two_body_hidden"]) - 1,
        "scalar_embed_mlp_hidden_layers_width": model["two_body_hidden"][0],
        "allegro_mlp_hidden_layers_depth": len(model["latent_hidden"]),
        "allegro_mlp_hidden_layers_width": model["latent_hidden"][0],
        "readout_mlp_hidden_layers_depth": len(model["readout_hidden"]),
        "readout_mlp_hidden_layers_width": model["readout_hidden"][0],
    }


def transforms(request: dict) -> list[torch.nn.Module]:
    """From an ASE structure's data to a model's input."""
    return [
        ChemicalSpeciesToAtomTypeMapper(model_type_names=request["species"]),
        NeighborListTransform(r_max=request["model"]["cutoff"]),
    ]


def to_data(atoms: ase.Atoms, request: dict) -> AtomicDataDict.Type:
    """A structure with its neighbor list and, if it has them, labels."""
    data = from_ase(atoms)
    for transform in transforms(request):
        data = transform(data)
    return data


def training_step(model: torch.nn.Module, request: dict) -> tuple[float, Callable[[], None]]:
    """Mean edges per batch, and an optimisation step that takes the batches in turn."""
    size = request["batch_size"]
    frames = [to_data(atoms, request) for atoms in ase.io.read(request["structures"], ":")]
    batches = [AtomicDataDict.batched_from_list(frames[i : i + size]) for i in range(0, len(frames), size)]
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=request["learning_rate"], fused=True)
    queue = itertools.cycle(batches)

    def step() -> None:
        batch = next(queue)
        optimizer.zero_grad(set_to_none=True)
        out = model(batch.copy())
        energy, forces = AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY
        num_atoms = batch[AtomicDataDict.NUM_NODES_KEY].view(-1, 1)
        energy_error = (out[energy] - batch[energy]) / num_atoms
        loss = energy_error.square().mean() + (out[forces] - batch[forces]).square().mean()
        loss.backward()
        optimizer.step()
        if not loss.isfinite():
            raise FloatingPointError("the loss is not finite")

    return sum(AtomicDataDict.num_edges(batch) for batch in batches) / len(batches), step


def md_step(model: torch.nn.Module, request: dict) -> tuple[float, Callable[[], None]]:
    """Edges of the structure, and a step of a random walk with forces from NequIP's calculator."""
    atoms = ase.io.read(request["structures"])
    edges = AtomicDataDict.num_edges(to_data(atoms, request))
    if request["mode"] == "aotinductor":
        atoms.calc = compiled_calculator(atoms, request)
    else:
        atoms.calc = NequIPCalculator(model.eval(), device="cpu", transforms=transforms(request))
    random = np.random.default_rng(0)

    def step() -> None:
        atoms.positions += random.normal(scale=request["displacement"], size=atoms.positions.shape)
        atoms.get_forces()

    return edges, step


def compiled_calculator(atoms: ase.Atoms, request: dict) -> NequIPCalculator:
    """What a user gets from nequip-compile, run in a process of its own, on a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, example, output = (Path(folder) / name for name in ("c.ckpt", "d.pt", "m.nequip.pt2"))
        write_checkpoint(checkpoint, request)
        write_example(example, to_data(atoms, request))
        command = [sys.executable, "-m", "nequip.scripts.compile", checkpoint, output]
        command += ["--mode", "aotinductor", "--device", "cpu", "--target", "ase", "--data-path", example]
        environment = os.environ | {"OMP_NUM_THREADS": str(request["threads"])}
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(run.stderr)
        if run.returncode:
            raise RuntimeError(f"nequip-compile: {last_line(run.stderr)}")
        return NequIPCalculator.from_compiled_model(
            output, device="cpu", chemical_species_to_atom_type_map=True
        )


def write_checkpoint(path: Path, request: dict) -> None:
    """A checkpoint as nequip-train writes it, with random weights."""
    builder = BUILDERS[request["model"]["type"]]
    training = {
        "_target_": "nequip.train.NequIPLightningModule",
        "model": {"_target_": f"{builder.__module__}.{builder.__name__}", **settings(request)},
    }
    module = NequIPLightningModule(
        model=training["model"],
        num_datasets={"train": 1, "val": 0, "test": 0, "predict": 0},
        info_dict={"versions": get_current_code_versions(verbose=False), "training_module": training},
    )
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path, weights_only=True)


def write_example(path: Path, data: AtomicDataDict.Type) -> None:
    """The input whose sizes the compiler sees: the very structure that is benchmarked."""
    holder = torch.nn.Module()
    for name, value in data.items():
        holder.register_buffer(name, value)
    torch.jit.script(holder).save(path)


if __name__ == "__main__":
    serve(prepare)
