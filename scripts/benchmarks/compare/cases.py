"""What is compared: the cases, their contenders and the hyperparameters, all in one place."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ase import Atoms
from structures import describe, molecules, silicon, water

CUTOFF = 5.0
COMMON = {"cutoff": CUTOFF, "l_max": 2, "parity": True, "num_bessel": 8, "polynomial_cutoff": 6}
# The keys of equipot's section ``model``; the workers of the peers translate them.
NEQUIP = {"type": "nequip", **COMMON, "layers": 4, "channels": 64, "radial_hidden": [64, 64]}
# What NequIP's own presets of its foundation models say.
_PRESET = {"parity": False, "radial_hidden": [128], "embedding_channels": 32, "first_self_connection": False}
PRESETS = {
    "S": NEQUIP | _PRESET | {"layers": 2, "l_max": 1, "channels": [128, 64]},
    "M": NEQUIP | _PRESET | {"layers": 4, "l_max": 2, "channels": [128, 64, 32]},
    "L": NEQUIP | _PRESET | {"layers": 6, "l_max": 3, "channels": [128, 64, 32, 32]},
}
ALLEGRO = {
    "type": "allegro",
    **COMMON,
    "layers": 2,
    "scalar_channels": 64,
    "channels": 32,
    "two_body_hidden": [64, 64],
    "latent_hidden": [64],
    "readout_hidden": [32],
}
# Another architecture, at about NequIP's accuracy.
MACE = {
    "cutoff": CUTOFF,
    "num_bessel": 8,
    "polynomial_cutoff": 6,
    "layers": 2,
    "hidden_irreps": "64x0e + 64x1o",
    "max_ell": 3,
    "correlation": 3,
    "radial_hidden": [64, 64, 64],
    "readout_irreps": "16x0e",
}
LEARNING_RATE = 1e-3
TRAINING_STEPS = 5  # in a row: a single one would find caches and pages as the others left them
NUM_BATCHES = 3  # different ones, taken in turn
DISPLACEMENT = 0.01  # Å per step and coordinate of the random walk that stands for molecular dynamics


@dataclass(frozen=True)
class Contender:
    """One program in one mode, with what it is asked to do.

    ``expected_edges``: per step, counted by ASE; None where they are not compared.
    """

    name: str
    program: str  # equipot, nequip, mace or sevennet
    frames: list[Atoms]
    request: dict
    num_atoms: float  # per step
    expected_edges: float | None


@dataclass(frozen=True)
class Case:
    """Contenders that run in turns, or one after the other; the others are compared with the first."""

    name: str
    title: str
    contenders: list[Contender]
    in_turns: bool = True


def _train(model: dict, batch_size: int, options: argparse.Namespace) -> Contender:
    frames = molecules(options.molecules, batch_size * NUM_BATCHES)
    facts = describe(frames, model["cutoff"])
    request = {
        "task": "train",
        "mode": "eager",
        "model": model,
        "mace": MACE,
        "batch_size": batch_size,
        "learning_rate": LEARNING_RATE,
        "steps": TRAINING_STEPS,
        "warm_up": NUM_BATCHES + 1,
        **facts,
    }
    atoms, edges = facts["total_atoms"] / NUM_BATCHES, facts["total_edges"] / NUM_BATCHES
    return Contender("equipot", "equipot", frames, request, atoms, edges)


def _md(model: dict, atoms: Atoms, options: argparse.Namespace, count_edges: bool = True) -> Contender:
    facts = describe([atoms], model["cutoff"], count_edges)
    request = {
        "task": "md",
        "mode": "eager",
        "model": model,
        "mace": MACE,
        "displacement": DISPLACEMENT,
        "steps": options.md_steps,
        "warm_up": 3,
        **facts,
    }
    return Contender("equipot", "equipot", [atoms], request, len(atoms), facts["total_edges"])


def _peer(contender: Contender, name: str, program: str, mode: str = "eager") -> Contender:
    """The same task for a peer."""
    return replace(contender, name=name, program=program, request=contender.request | {"mode": mode})


def _train_case(model: dict, batch_size: int, name: str, title: str, options: argparse.Namespace) -> Case:
    first = _train(model, batch_size, options)
    label = "NequIP" if model["type"] == "nequip" else "Allegro"
    contenders = [
        first,
        _peer(first, f"{label}, eager", "nequip"),
        _peer(first, f"{label}, compiled", "nequip", "compile"),
    ]
    if model["type"] == "nequip":
        exact = first.request | {"model": model | {"radial_intervals": None}}
        contenders.append(replace(first, name="equipot, no splines", request=exact))
        contenders.append(_peer(first, "MACE, eager", "mace"))
    return Case(name, title, contenders)


def _md_case(
    model: dict,
    structure: Callable[[argparse.Namespace], Atoms],
    name: str,
    title: str,
    options: argparse.Namespace,
) -> Case:
    first = _md(model, structure(options), options)
    label = "NequIP" if model["type"] == "nequip" else "Allegro"
    contenders = [
        first,
        _peer(first, f"{label}, AOTInductor", "nequip", "aotinductor"),
        _peer(first, f"{label}, eager", "nequip"),
    ]
    if model is NEQUIP:
        contenders.append(_peer(first, "MACE, eager", "mace"))
    return Case(name, title, contenders)


def _scaling_atoms(model: dict, box: bool, name: str, title: str, options: argparse.Namespace) -> Case:
    """Silicon crystals, or water boxes, each in a process of its own, up to ``options.max_atoms``."""
    cell = _box(options) if box else silicon(216)
    contenders = []
    for atoms in (cell.repeat(n) for n in (1, 2, 3, 5, 8)):
        if len(atoms) <= options.max_atoms:
            contender = _md(model, atoms, options, count_edges=False)
            contenders.append(replace(contender, name=f"{len(atoms):,} atoms"))
    return Case(name, title, contenders, in_turns=False)


def _pretrained_case(
    structure: Callable[[argparse.Namespace], Atoms], name: str, title: str, options: argparse.Namespace
) -> Case:
    first = _md({"cutoff": 5.0}, structure(options), options)
    first = replace(first, request=first.request | {"pretrained": "7net-0"})
    return Case(name, title, [first, _peer(first, "SevenNet", "sevennet")])


def _scaling_model(key: str, values: list[int], name: str, title: str, options: argparse.Namespace) -> Case:
    contenders = [
        replace(_train(NEQUIP | {key: value}, 5, options), name=f"{key} = {value}") for value in values
    ]
    return Case(name, title, contenders)


def _box(options: argparse.Namespace) -> Atoms:
    return water(options.water)


def _crystal(options: argparse.Namespace) -> Atoms:
    return silicon(216)


# Title, and how the case is made; nothing is read before it is asked for.
_MAKERS = {
    "train-batch5": ("NequIP: training step, 5 molecules", partial(_train_case, NEQUIP, 5)),
    "train-batch25": ("NequIP: training step, 25 molecules", partial(_train_case, NEQUIP, 25)),
    "train-allegro-batch5": ("Allegro: training step, 5 molecules", partial(_train_case, ALLEGRO, 5)),
    "train-allegro-batch25": ("Allegro: training step, 25 molecules", partial(_train_case, ALLEGRO, 25)),
    "md-water": ("NequIP: MD step, water", partial(_md_case, NEQUIP, _box)),
    "md-silicon": ("NequIP: MD step, 216 silicon atoms", partial(_md_case, NEQUIP, _crystal)),
    "md-allegro-water": ("Allegro: MD step, water", partial(_md_case, ALLEGRO, _box)),
    "sevennet-silicon": ("SevenNet-0: MD step, 216 silicon atoms", partial(_pretrained_case, _crystal)),
    "sevennet-water": ("SevenNet-0: MD step, water", partial(_pretrained_case, _box)),
    **{
        f"nequip-{preset.lower()}-{name}": (
            f"NequIP's preset {preset}: MD step, {what}",
            partial(_md_case, model, structure),
        )
        for preset, model in PRESETS.items()
        for name, what, structure in (("silicon", "216 silicon atoms", _crystal), ("water", "water", _box))
    },
    "scaling-silicon": ("equipot's NequIP: MD step, silicon", partial(_scaling_atoms, NEQUIP, False)),
    "scaling-water": ("equipot's NequIP: MD step, water", partial(_scaling_atoms, NEQUIP, True)),
    "scaling-allegro-water": ("equipot's Allegro: MD step, water", partial(_scaling_atoms, ALLEGRO, True)),
    "scaling-lmax": (
        "equipot's NequIP: training step, 5 molecules",
        partial(_scaling_model, "l_max", [0, 1, 2, 3]),
    ),
    "scaling-channels": (
        "equipot's NequIP: training step, 5 molecules",
        partial(_scaling_model, "channels", [16, 32, 64, 128]),
    ),
}
TITLES = {name: title for name, (title, _) in _MAKERS.items()}


def make_case(name: str, options: argparse.Namespace) -> Case:
    """The case called ``name``; ``options``: molecules, water (files), md_steps, max_atoms."""
    title, maker = _MAKERS[name]
    return maker(name, title, options)


DEFAULT_MOLECULES = Path("examples/01_molecule/train.xyz")
