"""The check passes a right model and finds each deliberate fault in the check that is meant for it."""

import io
import shutil
import zipfile

import numpy as np
import pytest
import torch
from rich.console import Console
from standin import AbruptNetwork, LeakyPotential, LopsidedNetwork, rewritten

from equipot.deploy.check import check, check_symmetries
from equipot.deploy.load import load_deployed
from equipot.deploy.structure import make_structure


def failed(report):
    return {item.name for item in report.items if not item.passed}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_right_model_passes(deploy_standin, dtype):
    report = check(deploy_standin(dtype=dtype), "cpu")
    assert report.passed, report.to_dict()
    assert len(report.items) == 11
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table())
    assert "energy conservation" in console.export_text()


def test_forces_that_are_no_gradient(deploy_standin):
    names = failed(check(deploy_standin(potential=LeakyPotential), "cpu"))
    assert "energy conservation" in names
    assert not any(name.startswith("reference") for name in names)


def test_jump_at_the_cutoff(deploy_standin):
    report = check(deploy_standin(network=AbruptNetwork), "cpu")
    assert {"energy at the cutoff", "forces at the cutoff"} <= failed(report)
    assert not {"rotation", "inversion", "permutation"} & failed(report)


def test_field_breaks_rotation_and_inversion(deploy_standin):
    names = failed(check(deploy_standin(network=LopsidedNetwork), "cpu"))
    assert {"rotation", "inversion"} <= names
    assert "permutation" not in names


def test_permutation_error_is_seen(model_file):
    """A model that looks at the order of atoms: the third one is heavier by 1 eV."""
    model = load_deployed(model_file, "cpu")
    right = model.module

    def ordered(edge_vec, edge_index, atom_types, owned):
        energies, forces, virials = right(edge_vec, edge_index, atom_types, owned)
        energies[2] += 1.0
        return energies, forces, virials

    object.__setattr__(model, "module", ordered)
    structure = make_structure("x", np.eye(3) * 2.0, np.zeros((3, 3)), [False] * 3, [0, 1, 2], 4.0)
    items = {item.name: item for item in check_symmetries(model, [structure])}
    assert not items["permutation"].passed
    assert items["rotation"].passed


def test_exchanged_weights_are_seen(deploy_standin, tmp_path):
    """The code of one model with the metadata of another."""
    right, other = deploy_standin(), deploy_standin(cutoff=4.5)
    with zipfile.ZipFile(other) as archive:
        foreign = {name: archive.read(name) for name in archive.namelist()}

    def exchange(name, data):
        return data if "/extra/" in name else foreign.get(name, data)

    path = rewritten(right, tmp_path / "model.pt", exchange)
    assert {"reference energy", "reference forces", "reference virials"} <= failed(check(path, "cpu"))


def test_unreadable_file_is_reported(model_file, tmp_path):
    path = tmp_path / "cut.pt"
    shutil.copy(model_file, path)
    with path.open("r+b") as file:
        file.truncate(1000)
    report = check(path)
    assert not report.passed
    assert "not a model file, or truncated or damaged" in report.error
    assert report.to_dict()["checks"] == []


def test_missing_device_is_reported(model_file):
    assert "'cuda:99' does not exist" in check(model_file, "cuda:99").error
