"""NequIP on the same structures, in this run and with the interpreter's own packages: plain, and with the
kernels of OpenEquivariance and cuEquivariance. What is not installed is said by name.
"""

import functools
import importlib.util
from collections.abc import Callable
from importlib.metadata import version

import torch
from plan import Case, Context, Rows
from systems import CUTOFF, NEIGHBORS, SPECIES, for_inference, inputs, model_settings, potential, structure
from timing import measure

# Column, the packages it needs, and the modifier that NequIP knows it by.
PEERS = {
    "NequIP": (["nequip"], None),
    "NequIP with OpenEquivariance": (["nequip", "openequivariance"], "enable_OpenEquivariance"),
    "NequIP with cuEquivariance": (
        ["nequip", "cuequivariance", "cuequivariance_torch"],
        "enable_CuEquivariance",
    ),
}
SIZES = {"full": [("silicon", 1728), ("water", 1536)], "small": [("silicon", 64)], "tiny": [("silicon", 8)]}
MODELS = ("l2 parity", "l2")


def cases(context: Context) -> dict[str, Case]:
    models = MODELS if context.size == "full" else MODELS[:1]
    return {
        f"{peer}, {name}, {kind} {num_atoms}": functools.partial(beside, peer, name, kind, num_atoms)
        for peer in PEERS
        for name in models
        for kind, num_atoms in SIZES[context.size]
    }


def beside(peer: str, name: str, kind: str, num_atoms: int, context: Context) -> Rows:
    """equipot and the peer, one after the other: energies, forces and stress; edges given."""
    common = {"model": name, "structure": kind, "atoms": num_atoms}
    packages, modifier = PEERS[peer]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        return [{**common, "program": peer, "note": f"not installed: {', '.join(missing)}"}]
    if modifier and not context.gpu:
        return [{**common, "program": peer, "note": "runs on a GPU only"}]
    given = inputs(kind, num_atoms, context.device)
    ours = for_inference(potential(model_settings(name, context.size), kind)).to(context.device)
    theirs, edges = nequip(model_settings(name, context.size), kind, num_atoms, modifier, context.device)
    own = measure(lambda: ours(*given), context.device, context.seconds / 5)
    other = measure(theirs, context.device, context.seconds / 5)
    versions = ", ".join(f"{package} {_version(package)}" for package in packages)
    row = {**common, "program": peer, "edges": edges, **other.row(), "µs/atom": 1e3 * other.wall / num_atoms}
    row |= {"equipot ms": own.wall, "peer/equipot": other.wall / own.wall, "note": versions}
    if edges != given.num_edges:
        row |= {"ok": False, "note": f"another task: equipot has {given.num_edges:,} edges"}
    return [row]


def nequip(
    settings: dict, kind: str, num_atoms: int, modifier: str | None, device: str
) -> tuple[Callable, int]:
    """An evaluation by NequIP with the same hyperparameters, and its number of edges."""
    from nequip.data import AtomicDataDict, from_ase
    from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
    from nequip.model import NequIPGNNModel, modify
    from nequip.utils.global_state import set_global_state

    set_global_state()
    species = SPECIES[kind]
    hidden = settings.get("radial_hidden", [64, 64])
    model = NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        compile_mode="eager",
        type_names=species,
        r_max=CUTOFF,
        l_max=settings["l_max"],
        parity=settings["parity"],
        num_layers=settings["layers"],
        num_features=settings["channels"],
        num_bessels=8,
        polynomial_cutoff_p=6,
        # The self-connection acts on this embedding; equipot's acts on the species.
        type_embed_num_features=len(species),
        radial_mlp_depth=len(hidden),
        radial_mlp_width=hidden[0],
        avg_num_neighbors=NEIGHBORS[kind],
        per_type_energy_scales=dict.fromkeys(species, 1.0),
        per_type_energy_shifts=dict.fromkeys(species, -1.0),
    )
    if modifier:
        model = modify(model, [{"modifier": modifier}])
    model = model.to(device).eval()
    data = from_ase(structure(kind, num_atoms))
    transforms = (
        ChemicalSpeciesToAtomTypeMapper(model_type_names=species),
        NeighborListTransform(r_max=CUTOFF),
    )
    for transform in transforms:
        data = transform(data)
    data = AtomicDataDict.to_(data, torch.device(device))
    return lambda: model(data.copy()), AtomicDataDict.num_edges(data)


def _version(package: str) -> str:
    return version(package.replace("_", "-"))
