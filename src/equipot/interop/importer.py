"""From a file of another code to a checkpoint of equipot."""

import dataclasses
import hashlib
import importlib.metadata
import importlib.util
import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipot.config import config_from_dict
from equipot.config.suggest import did_you_mean
from equipot.data.statistics import LevelStatistics, Statistics
from equipot.deploy.checkpoint import Checkpoint, training_state
from equipot.deploy.examples import example_structures
from equipot.deploy.metadata import require_checksums
from equipot.deploy.replay import write_replay
from equipot.errors import ModelFileError
from equipot.files import atomic_write, refuse_to_replace
from equipot.interop.allegro import AllegroModel
from equipot.interop.dump import FUNC, DumpedModel
from equipot.interop.layout import readable
from equipot.interop.nequip import NequIPModel
from equipot.interop.process import dump, evaluate, is_nequip
from equipot.interop.sevennet import SevenNet
from equipot.interop.verify import Comparison, compare, require_equal, sevennet
from equipot.models.build import build_potential
from equipot.models.transfer import transfer

# Models in the package sevenn: file below its folder, and what is known of each.
_FOLDER = "pretrained_potentials"
_MP = "Materials Project relaxations"
MODELS = {
    "7net-0": ("SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth", f"MPtrj: {_MP}, PBE and PBE+U"),
    "7net-0_22May2024": (
        "SevenNet_0__22May2024/checkpoint_sevennet_0.pth",
        f"MPF.2021.2.8 (M3GNet): {_MP}, PBE and PBE+U",
    ),
    "7net-l3i5": ("SevenNet_l3i5/checkpoint_l3i5.pth", f"MPtrj: {_MP}, PBE and PBE+U"),
    "7net-mf-0": ("SevenNet_MF_0/checkpoint_sevennet_mf_0.pth", f"{_MP}, PBE(+U) and r2SCAN"),
}
_ALIASES = {"7net-0_11Jul2024": "7net-0"}


@dataclasses.dataclass(frozen=True)
class Imported:
    """What was written, and what the original code said of it, if it was asked."""

    checkpoint: Checkpoint
    comparisons: list[Comparison]
    replay: Path | None  # frames for ``fine_tune.replay``, if they were asked for


def import_model(
    source: str,
    output: str | Path | None = None,
    level: str | None = None,
    elements: Sequence[str] | None = None,
    dtype: str = "float32",
    verify: bool = False,
    python: str | None = None,
    replay: int | None = None,
    overwrite: bool = True,
) -> Imported:
    """Write a model of another code as a checkpoint of equipot.

    Args:
        source: a SevenNet checkpoint, or the name of one in the installed package sevenn (`MODELS`); a
            checkpoint (.ckpt) or package (.nequip.zip) of NequIP, which run code when they are opened.
        output: the file to write; None: NAME.ckpt.
        level: the level of theory, of a model of several; None: all of them.
        elements: chemical symbols to keep, in this order; None: all, by atomic number.
        dtype: of the network, "float32" or "float64".
        verify: compare with the original code, which must be installed, before the file gets its name.
        python: the interpreter that has nequip and opens files of NequIP in a process of its own; None: this.
        replay: write what the model predicts for so many structures beside it, as NAME_replay.xyz.
        overwrite: replace what is there.

    Raises:
        ConfigError: a file cannot be written, or is there, without ``overwrite``.
        ModelFileError: no such file, name or package; not such a checkpoint, or one that uses what equipot
            does not have; no such level or element, or several and ``replay``; or the two codes do not agree.
    """
    path, origin = _find(source)
    model = _model(path, origin, level, python)
    if replay is not None and len(model.levels) > 1:
        raise ModelFileError(
            "--replay is of one level of theory: choose it with --level, or let the training make the "
            f"frames, with fine_tune.replay: {replay}."
        )
    name = re.sub(r"[^\w.+-]", "_", origin["model"] if level is None else f"{origin['model']}-{level}")
    origin |= {"level": level} if level is not None else {}
    output = Path(output) if output is not None else Path(f"{name}.ckpt")
    if output.is_dir():
        raise ModelFileError(f"{output} is a folder. Name the file to write, such as {output}/{name}.ckpt.")
    if output.resolve() == path.resolve():
        raise ModelFileError(f"{output} is the file to import: name another one to write.")
    frames = output.with_name(f"{output.stem}_replay.xyz")
    for file in (output, *([frames] if replay is not None else [])):
        refuse_to_replace(file, overwrite)
    checkpoint = _checkpoint(output, model, elements, dtype, origin)
    comparisons = []
    if verify:
        exact = _checkpoint(output, model, elements, "float64", origin)
        comparisons = _compare_levels(exact, model, path, python)
        require_equal(comparisons, source)
    state = training_state(checkpoint)
    with atomic_write(output) as temporary:
        temporary.write_bytes(state)
    if replay is None:
        return Imported(checkpoint, comparisons, None)
    write_replay(checkpoint, replay, frames)
    return Imported(checkpoint, comparisons, frames)


def _compare_levels(
    exact: Checkpoint, model: SevenNet | DumpedModel, path: Path, python: str | None
) -> list[Comparison]:
    """With the original code, at each level of theory."""
    comparisons = []
    for name in model.levels or [None]:
        potential = exact.at_level(name).potential
        examples = example_structures(potential.species)
        if isinstance(model, DumpedModel):
            results = iter(evaluate(path, python, examples))
            comparisons += compare(potential, lambda _, found=results: next(found), examples, name)
        else:
            comparisons += compare(potential, sevennet(path, name), examples, name)
    return comparisons


def runs_code(source: str) -> bool:
    """Whether `import_model` has to run code that is in the file. Raises ModelFileError as it does."""
    return Path(source).is_file() and is_nequip(Path(source))


def _model(
    path: Path, origin: dict[str, str], level: str | None, python: str | None
) -> SevenNet | DumpedModel:
    """Adds to ``origin`` what is known from opening it."""
    if not is_nequip(path):
        return SevenNet(path, _read(path), level)
    if level is not None:
        raise ModelFileError(f"{path}: it has one level of theory without a name: leave --level out.")
    found = dump(path, python)
    packages = [f"{name} {version}" for name, version in found.versions.items() if name.startswith("nequip")]
    origin |= {"code": "NequIP", "package": ", ".join(packages), "licence": "not stated in the file"}
    return AllegroModel(found) if "allegro" in found.children(FUNC) else NequIPModel(found)


def _find(source: str) -> tuple[Path, dict[str, str]]:
    """The file that is meant, and what is known of it."""
    known = {name.lower(): name for name in (*MODELS, *_ALIASES)}
    if Path(source).is_file():
        path = Path(source)
        origin = {"code": "SevenNet", "model": path.stem.removesuffix(".nequip")}
    elif source.lower() in known:
        name = known[source.lower()]
        name = _ALIASES.get(name, name)
        file, data = MODELS[name]
        path, package = _in_package(name, file)
        origin = {"code": "SevenNet", "model": name, **package, "trained on": data}
    else:
        raise ModelFileError(
            f"No file '{source}' (looked in {Path(source).absolute().parent}), and no model is called so."
            f"{did_you_mean(source, known.values())} Expected a checkpoint of SevenNet (.pth) or NequIP "
            f"(.ckpt, .nequip.zip), or one of {', '.join(MODELS)} in the installed package sevenn. Of others "
            "that sevenn knows give the file."
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, origin | {"file": path.name, "SHA-256": digest}


def _in_package(name: str, file: str) -> tuple[Path, dict[str, str]]:
    """Without importing it."""
    found = importlib.util.find_spec("sevenn")
    if found is None or found.origin is None:
        raise ModelFileError(
            f"The model '{name}' comes with the package sevenn, which is not installed: run "
            "`pip install sevenn`, or give the path of the checkpoint."
        )
    path = Path(found.origin).parent / _FOLDER / file
    about = importlib.metadata.metadata("sevenn")
    if not path.is_file():
        raise ModelFileError(f"sevenn {about['Version']} does not hold the model '{name}' ({path}).")
    return path, {"package": f"sevenn {about['Version']}", "licence": about.get("License", "not stated")}


def _read(path: Path) -> dict[str, Any]:
    """The content of a PyTorch file: tensors, numpy arrays and plain values. Code in it is not run."""
    try:
        with zipfile.ZipFile(path) as archive:
            require_checksums(path, archive)
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ModelFileError(
                    f"{path}: a TorchScript file; expected the checkpoint (.pth) that it was made of. One "
                    "from `equipot deploy` needs no import: use it as it is."
                )
        with torch.serialization.safe_globals(_NUMPY):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"'{named[1]}'" if named else "objects"
        raise ModelFileError(
            f"{path}: holds {what} beside tensors and numbers. Such a file can run code when it is opened, "
            "so it was not. Expected a SevenNet checkpoint."
        ) from None
    except ModelFileError:
        raise
    except Exception as error:  # the unpickler raises whatever wrong bytes lead it into
        raise ModelFileError(
            f"{path}: not a PyTorch file, or truncated or damaged ({path.stat().st_size} bytes; "
            f"{type(error).__name__}). Expected a SevenNet checkpoint."
        ) from None
    if not isinstance(content, dict):
        raise ModelFileError(f"{path}: holds a {type(content).__name__}; expected a SevenNet checkpoint.")
    return content


_RECONSTRUCT, _SCALAR = np._core.multiarray._reconstruct, np._core.multiarray.scalar
# What arrays and their numbers are made of, by the names of numpy 1 and 2.
_NUMPY: list[Callable | tuple[Callable, str]] = [
    np.ndarray,
    np.dtype,
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "bool")),
]


def _checkpoint(
    output: Path,
    model: SevenNet | DumpedModel,
    elements: Sequence[str] | None,
    dtype: str,
    origin: dict[str, str],
) -> Checkpoint:
    species = _kept(model, elements)
    rows = [model.species.index(symbol) for symbol in species]
    with readable(model.path):
        of_model = model.model_config() | {"dtype": dtype}
    config = config_from_dict({"data": {"train": str(model.path)}, "model": of_model})
    several = len(model.levels) > 1
    zeros = [0.0] * len(model.species)
    built_from = {
        "species": model.species,
        "levels": model.levels,
        "avg_num_neighbors": model.denominator**2,
        "atomic_energies": [zeros] * len(model.levels) if several else zeros,
        "force_rms": None,
    }
    whole = build_potential(config.model.model_copy(update={"dtype": "float64"}), **built_from)
    with readable(model.path):
        whole.load_state_dict(model.state(whole.network))
    state = transfer(whole.state_dict(), config.model.type, rows, range(max(len(model.levels), 1)))
    built_from |= {"species": species, "atomic_energies": state["scale_shift.shift"].tolist()}
    potential = build_potential(config.model, **built_from)
    potential.load_state_dict(state)
    shifts = np.reshape(built_from["atomic_energies"], (-1, len(species))).tolist()
    energies = [LevelStatistics(of_level, "imported", None) for of_level in shifts]
    statistics = Statistics(
        species=species,
        **vars(energies[0]),
        avg_num_neighbors=built_from["avg_num_neighbors"],
        force_rms=None,
        num_frames=0,
        num_atoms=0,
        atoms_per_species=[0] * len(species),
        num_labels={},
        levels=dict(zip(model.levels, energies, strict=True)) if several else {},
    )
    return Checkpoint(output, potential.eval(), "last", config, statistics, {}, built_from, {}, origin)


def _kept(model: SevenNet | DumpedModel, elements: Sequence[str] | None) -> list[str]:
    if elements is None:
        return model.species
    unknown = [symbol for symbol in elements if symbol not in model.species]
    if unknown or len(set(elements)) < len(elements) or not elements:
        raise ModelFileError(
            f"--elements: expected different symbols among the {len(model.species)} elements of the model, "
            f"{' '.join(model.species)}; found {' '.join(elements) or 'none'}."
        )
    return list(elements)
