"""Models that nequip makes, against itself, where EQUIPOT_NEQUIP_PYTHON or this interpreter has it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from equipot.deploy.examples import example_structures
from equipot.errors import ModelFileError
from equipot.interop import process
from equipot.interop.allegro import AllegroModel
from equipot.interop.dump import Dump
from equipot.interop.importer import _checkpoint, import_model
from equipot.interop.nequip import NequIPModel
from equipot.interop.verify import compare

PYTHON = os.environ.get("EQUIPOT_NEQUIP_PYTHON", sys.executable)
MAKER = Path(__file__).with_name("make_nequip.py")
KINDS = (
    "default", "parity", "norm_readout_bessel", "pairs_zbl", "full", "preset_S", "preset_M", "preset_L",
    "allegro", "allegro_three", "allegro_pairs_zbl",
)  # fmt: skip
STRUCTURES = example_structures(["H", "C", "O"])
pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("allegro") is None and "EQUIPOT_NEQUIP_PYTHON" not in os.environ,
        reason="nequip-allegro is not installed, and EQUIPOT_NEQUIP_PYTHON names no interpreter that has it",
    ),
    pytest.mark.filterwarnings("ignore:.*"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of what make_nequip.py writes."""
    folder = tmp_path_factory.mktemp("nequip")
    np.savez(folder / "structures.npz", **process.as_arrays(STRUCTURES))
    arguments = [PYTHON, MAKER, process.SCRIPT, folder / "structures.npz", folder]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(arguments, check=True, env=environment)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_against_nequip(kind, made):
    """In float64, to rounding."""
    read = AllegroModel if kind.startswith("allegro") else NequIPModel
    model = read(Dump(made / kind, made / f"{kind}.npz"))
    potential = _checkpoint(made / "a.ckpt", model, None, "float64", {}).potential
    with np.load(made / f"{kind}_reference.npz") as found:
        results = iter(process.by_structure(found, STRUCTURES))
    for item in compare(potential, lambda _: next(results), STRUCTURES):
        assert item.energy < 1e-12 and item.forces < 1e-12 and item.stress < 1e-12, item


def test_checkpoint(made, tmp_path):
    """A file as its trainer writes it, opened in a process of its own."""
    found = import_model(str(made / "train.ckpt"), tmp_path / "a.ckpt", verify=True, python=PYTHON)
    assert max(item.worst for item in found.comparisons) < 1e-9 and len(found.comparisons) >= 12
    assert found.checkpoint.config.model.zbl == "cutoff"
    assert found.checkpoint.origin["package"].startswith("nequip 0.")
    with pytest.raises(ModelFileError, match="found Si"):
        import_model(str(made / "train.ckpt"), tmp_path / "b.ckpt", elements=["Si"], python=PYTHON)
