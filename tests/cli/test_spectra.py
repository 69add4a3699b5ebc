"""scripts/spectra.py, by hand."""

import importlib.util
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from equipot.config import load_config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def spectra():
    spec = importlib.util.spec_from_file_location("spectra", ROOT / "scripts" / "spectra.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_errors_of_spectra(spectra, tmp_path, capsys):
    """Two lines of one height: a mean that moves by half the distance when one doubles."""
    source, frames = [], []
    for number, repeated in enumerate(("none", "none", "other")):
        source.append(Atoms("Al", info={"repeats": repeated}))
        line = [0.0, 2.0, 0.0, 1.0 + number] if number < 2 else [9.0, 9.0, 9.0, 9.0]
        info = {"reference_dos": np.array([0.0, 2.0, 0.0, 2.0]), "predicted_dos": np.array(line)}
        where = {"source_file": str(tmp_path / "source.xyz"), "source_index": number}
        frames.append(Atoms("Al", info=info | where))
    ase.io.write(tmp_path / "source.xyz", source)
    ase.io.write(tmp_path / "p.xyz", frames)
    grid = ["--name", "dos", "--grid", "0", "30", "--where", "repeats=none"]
    found = spectra.main([str(tmp_path / "p.xyz"), *grid, "--plot", str(tmp_path / "p.png")])
    assert found["mae"] == pytest.approx(1 / 8)  # one of two is off by 1 in one of four numbers
    assert found["mean"] == pytest.approx((20 - 50 / 3) / 2)  # 10 and 30, weights 2 and 1
    assert "dos of 2 of 3 structures" in capsys.readouterr().out
    assert (tmp_path / "p.png").stat().st_size > 1000
    with pytest.raises(SystemExit):
        spectra.main([str(tmp_path / "p.xyz"), *grid[:-1], "repeats=never"])


@pytest.mark.parametrize("name", ["scratch", "head"])
def test_configurations_of_the_example(name):
    config = load_config(ROOT / "examples" / "08_phonon_dos" / f"{name}.yaml")
    assert not config.model.energy and not config.training.loss.of_energies
    assert config.outputs["phonon_dos"].shape == (66,)
