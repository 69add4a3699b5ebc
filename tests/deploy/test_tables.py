"""Radial tables: as accurate as they claim, coarse where that is enough, left out where they do not pay."""

import copy

import numpy as np
import pytest
import torch

from equipot.config import AllegroConfig, NequIPConfig
from equipot.deploy.capsule import synthetic_structures
from equipot.deploy.load import load_deployed
from equipot.deploy.metadata import describe_tables
from equipot.deploy.structure import evaluate
from equipot.deploy.tables import tabulate
from equipot.deploy.torchscript import write_torchscript
from equipot.models.build import build_potential
from equipot.ops.build import kernels_available

SPECIES = ["H", "C", "O"]


def make_potential(config_class=NequIPConfig, **keywords):
    torch.manual_seed(3)
    config = config_class(
        type="nequip" if config_class is NequIPConfig else "allegro",
        layers=2,
        l_max=1,
        cutoff=4.0,
        **keywords,
    )
    return build_potential(config, SPECIES, 6.0, [-13.0, -1030.0, -2040.0], 1.0).eval()


@pytest.fixture
def needs_kernels():
    if not kernels_available():
        pytest.skip("the kernels are off or cannot be compiled here")


@pytest.mark.usefixtures("needs_kernels")
@pytest.mark.parametrize("radial_intervals", [None, 64])
@pytest.mark.parametrize("xplor_start", [None, 3.6])
def test_forces_change_less_than_by_single_precision(radial_intervals, xplor_start):
    potential = make_potential(channels=8, radial_intervals=radial_intervals, xplor_start=xplor_start)
    structures = synthetic_structures(SPECIES, 4.0)
    exact = copy.deepcopy(potential).double()
    facts = tabulate(potential, structures)
    assert facts["force_error"] <= facts["rounding"] < 1e-4
    assert (facts["force_error"] > 0) == (radial_intervals is None)  # splines are kept as they are
    assert "RadialTable" in str(potential)
    changes = [
        np.abs(evaluate(potential, item).forces - evaluate(exact, item).forces).max() for item in structures
    ]
    assert max(changes) <= 3 * facts["rounding"]  # table, and the rounding of a kernel of its own


@pytest.mark.usefixtures("needs_kernels")
def test_coarse_tables_are_not_taken(monkeypatch):
    potential = make_potential(channels=8, radial_intervals=None)
    structures = synthetic_structures(SPECIES, 4.0)
    monkeypatch.setattr("equipot.models.nequip.NequIP.table_intervals", lambda network: (4, 8))
    assert tabulate(potential, structures) == {}
    assert "RadialTable" not in str(potential)


def test_where_tables_do_not_pay(monkeypatch):
    structures = synthetic_structures(SPECIES, 4.0)
    for potential in (make_potential(dtype="float64"), make_potential(AllegroConfig)):
        assert tabulate(potential, structures) == {}
    monkeypatch.setattr("equipot.deploy.tables.kernels_available", lambda: False)
    assert tabulate(make_potential(), structures) == {}


@pytest.mark.parametrize("tables", [True, False])
def test_deployed_file(tmp_path, tables):
    """The file agrees with the network, says which it holds, and leaves the caller's model alone."""
    potential, structures = make_potential(channels=8), synthetic_structures(SPECIES, 4.0)
    write_torchscript(
        potential, tmp_path / "model.pt", structures, source="test", model_type="nequip",
        atomic_energies=[-13.0, -1030.0, -2040.0], weights="ema", validation={}, config="", tables=tables,
    )  # fmt: skip
    assert "RadialTable" not in str(potential)
    model = load_deployed(tmp_path / "model.pt", "cpu")
    assert bool(model.metadata.tables) == (tables and kernels_available())
    assert ("tables of" in describe_tables(model.metadata.tables)) == bool(model.metadata.tables)
    for structure in structures:
        found, expected = evaluate(model, structure), evaluate(potential, structure)
        np.testing.assert_allclose(found.forces, expected.forces, atol=2e-5)  # single precision twice
