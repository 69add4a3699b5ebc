"""Opens a file of NequIP, which runs code: for the user's own interpreter, in a process of its own.

    python nequip_dump.py dump MODEL OUT.npz
    python nequip_dump.py evaluate MODEL STRUCTURES.npz OUT.npz

``dump`` writes every weight and buffer under its name, and as JSON (``facts``) the class and plain attributes
of every module; ``evaluate`` energies, forces and stresses in float64. Nothing of equipot is imported here.
"""

import contextlib
import json
import sys
import warnings

import numpy as np
import torch

NOT_INSTALLED, NO_SUCH_MODEL = 3, 4  # exit statuses


def dump(model, versions):
    """Arrays by name, and ``facts``: JSON with the modules of ``model`` and the ``versions`` of packages."""
    arrays = {name: weight.detach().cpu().numpy() for name, weight in _tensors(model)}
    modules = {
        name: {"class": type(module).__name__, **_plain_attributes(module)}
        for name, module in model.named_modules()
    }
    return {"facts": np.array(json.dumps({"versions": versions, "modules": modules})), **arrays}


def _tensors(model):
    yield from model.named_parameters()
    yield from model.named_buffers()


def _plain_attributes(module):
    inner = vars(torch.nn.Module()).keys() | {"__codegen__"}
    return {name: _plain(value) for name, value in vars(module).items() if name not in inner}


def _plain(value):
    """As JSON can have it; classes are told by name, since a package brings its own."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if type(value).__name__ in ("Irreps", "Irrep"):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "__name__", type(value).__name__)


def load(path):
    """The model in a file, and the versions of the packages that opened it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        from nequip.model.saved_models import load_saved_model
        from nequip.utils.global_state import set_global_state
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NOT_INSTALLED)
    set_global_state()
    models = load_saved_model(path, model_key=None)
    if "sole_model" not in models:
        print(f"holds several models ({', '.join(models)})", file=sys.stderr)
        sys.exit(NO_SUCH_MODEL)
    versions = {}
    for package in ("nequip", "nequip-allegro", "e3nn", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return models["sole_model"].eval(), versions


def evaluate(model, structures):
    """energy (S,), forces (atoms, 3), stress (S, 3, 3); structure n: atoms ``first[n]`` to ``last[n]``."""
    from ase import Atoms
    from nequip.integrations.ase import NequIPCalculator
    from nequip.integrations.utils import basic_transforms

    _to_double(model)
    about = model.metadata
    names = about["type_names"].split(" ")
    transforms = basic_transforms(about, float(about["r_max"]), names, {name: name for name in names})
    calculator = NequIPCalculator(model, "cpu", transforms=transforms)
    energy, forces, stress = [], [], []
    for n, (first, last) in enumerate(zip(structures["first"], structures["last"], strict=True)):
        numbers, positions = (structures[key][first:last] for key in ("numbers", "positions"))
        cell, pbc = structures["cell"][n], structures["pbc"][n]
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        atoms.calc = calculator
        energy.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stress.append(atoms.get_stress(voigt=False) if pbc.all() else np.zeros((3, 3)))
    return {"energy": np.array(energy), "forces": np.concatenate(forces), "stress": np.array(stress)}


def _to_double(model):
    """The same weights, and all that is computed, in float64; coupling coefficients are made again."""
    from e3nn.o3 import wigner_3j

    for module in model.modules():
        for name, value in list(vars(module).items()):
            if value is torch.float32:
                setattr(module, name, torch.float64)
        if type(module).__name__ == "Contracter":  # coupling coefficients of all paths in one array
            options = {"mul": module.mul, "path_channel_coupling": module.path_channel_coupling}
            irreps = (module.irreps_in1, module.irreps_in2, module.irreps_out)
            module.w3j = type(module)(*irreps, **options).w3j.double()
    model.double()
    for name, buffer in model.named_buffers():
        if "_w3j_" in name:
            exact = wigner_3j(*map(int, name.rpartition("_w3j_")[2].split("_")), dtype=torch.float64)
            buffer.copy_(exact if torch.allclose(exact, buffer, atol=1e-6) else -exact)


def main(command, path, *rest):
    """As the module says."""
    warnings.simplefilter("ignore")
    model, versions = load(path)
    if command == "dump":
        found = dump(model, versions)
    else:
        found = evaluate(model, np.load(rest[0], allow_pickle=False))
    np.savez(rest[-1], **found)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, in which another module is called nequip
    main(*sys.argv[1:])
