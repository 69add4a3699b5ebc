"""Writing a deployed file: what is in it, and that a failure leaves nothing behind."""

import numpy as np
import pytest
import torch
from standin import make_potential, write_standin

from equipot.deploy import torchscript
from equipot.deploy.capsule import Capsule, Deviation, compare_capsule, make_capsule, synthetic_structures
from equipot.deploy.load import load_deployed
from equipot.deploy.structure import evaluate
from equipot.deploy.torchscript import weights_digest
from equipot.errors import ModelFileError


def test_fresh_process_accepts_the_file(tmp_path, fresh_process):
    """The whole path, with the real fresh process."""
    with fresh_process():
        metadata = write_standin(tmp_path / "model.pt", dtype=torch.float32)
    model = load_deployed(tmp_path / "model.pt", "cpu")
    assert model.metadata == metadata
    assert metadata.dtype == "float32"
    assert weights_digest(model.module) == metadata.weights_sha256
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_file_equals_eager_model(model_file):
    """At every call, the first one too: see `steady_execution`."""
    potential, model = make_potential(), load_deployed(model_file, "cpu")
    for structure in synthetic_structures(potential.species, 4.0):
        eager = evaluate(potential, structure)
        for _ in range(4):
            deployed = evaluate(model, structure)
            for name in ("atom_energies", "forces", "atom_virials"):
                assert np.array_equal(deployed.rows[name], eager.rows[name])


def test_forces_where_gradients_are_off(model_file):
    model = load_deployed(model_file, "cpu")
    structure = synthetic_structures(model.metadata.species, 4.0)[0]
    expected = evaluate(model, structure).forces
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            types = torch.as_tensor(structure.atom_types)
            edges = torch.as_tensor(structure.edge_vec), torch.as_tensor(structure.edge_index)
            _, forces, _ = model(*edges, types, torch.ones_like(types, dtype=torch.bool))
            assert np.array_equal(forces.numpy(), expected)
            assert np.array_equal(evaluate(model, structure).forces, expected)


def test_ghosts_do_not_count(model_file):
    """An atom that is not owned keeps its neighbors' pull but adds no energy."""
    model = load_deployed(model_file, "cpu")
    structure = synthetic_structures(model.metadata.species, 4.0)[0]
    types = torch.as_tensor(structure.atom_types)
    owned = types != 1
    energies, _, _ = model(
        torch.as_tensor(structure.edge_vec), torch.as_tensor(structure.edge_index), types, owned
    )
    assert (energies[~owned] == 0).all()
    assert (energies[owned] != 0).all()


def test_writing_leaves_the_model_alone():
    potential = make_potential()
    potential.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchscript, "atomic_write", _fail)
        with pytest.raises(OSError, match="disk full"):
            torchscript.write_torchscript(potential, "x.pt", [], **ARGUMENTS)
    assert potential.training
    assert all(p.requires_grad for p in potential.network.parameters())


ARGUMENTS = {
    "source": "-", "model_type": "standin", "atomic_energies": [-10, -20, -30],
    "weights": "ema", "validation": {}, "config": "",
}  # fmt: skip


def _fail(*_):
    raise OSError("disk full")


def test_non_finite_model_is_refused(tmp_path):
    potential = make_potential()
    with torch.no_grad():
        potential.network.strength[1] = torch.nan
    structures = synthetic_structures(potential.species, 4.0)
    with pytest.raises(ModelFileError, match="non-finite results for the structure 'cluster"):
        torchscript.write_torchscript(potential, tmp_path / "model.pt", structures, **ARGUMENTS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", ["deviates", "crashes"])
def test_failed_verification_keeps_the_old_file(tmp_path, monkeypatch, answer):
    path = tmp_path / "model.pt"
    path.write_text("older model")

    def verify(_):
        if answer == "crashes":
            raise ModelFileError("Not deployed: crashed")
        return [Deviation("forces", "eV/Å", 0.1, 1e-9)]

    monkeypatch.setattr(torchscript, "_deviations_in_fresh_process", verify)
    with pytest.raises(ModelFileError, match="Not deployed"):
        write_standin(path)
    assert path.read_text() == "older model"
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_fresh_process_reports_a_bad_file(tmp_path, fresh_process):
    path = tmp_path / "bad.pt"
    path.write_text("no model")
    with (
        fresh_process(),
        pytest.raises(ModelFileError, match=r"fails in a fresh process: .*not a model file"),
    ):
        torchscript._deviations_in_fresh_process(path)


def test_output_may_not_be_a_folder(tmp_path):
    with pytest.raises(ModelFileError, match="is a folder"):
        write_standin(tmp_path)


def test_capsule_round_trip_is_exact():
    potential = make_potential()
    capsule = make_capsule(potential, synthetic_structures(potential.species, 4.0), "somewhere")
    again = Capsule.from_json(capsule.to_json())
    assert again.source == "somewhere"
    for before, after in zip(capsule.references, again.references, strict=True):
        for old, new in (
            (vars(before.structure), vars(after.structure)),
            (before.result.rows, after.result.rows),
        ):
            for name, value in old.items():
                assert np.array_equal(new[name], value), name


def test_capsule_sees_a_wrong_model():
    """Deliberate fault: a weight that is off by 0.1 % is more than either tolerance allows."""
    right, wrong = make_potential(), make_potential()
    capsule = make_capsule(right, synthetic_structures(right.species, 4.0), "-")
    energies = right.scale_shift.shift.tolist()
    assert all(d.passed for d in compare_capsule(right, capsule, "float64", energies))
    with torch.no_grad():
        wrong.network.strength[2] *= 1.001
    for dtype in ("float32", "float64"):
        assert not any(d.passed for d in compare_capsule(wrong, capsule, dtype, energies))


def test_capsule_sees_nan():
    potential = make_potential()
    capsule = make_capsule(potential, synthetic_structures(potential.species, 4.0), "-")
    with torch.no_grad():
        potential.network.strength[:] = torch.nan
    assert not any(d.passed for d in compare_capsule(potential, capsule, "float32", [0, 0, 0]))


def test_synthetic_structures_hold_every_species():
    for species in (["Si"], ["H", "C", "N", "O", "Cu", "Au", "U"]):
        cluster, crystal = synthetic_structures(species, 5.0)
        assert set(cluster.atom_types) == set(range(len(species)))
        assert cluster.edge_index.shape[1] > 0
        self_images = crystal.edge_index[0] == crystal.edge_index[1]
        assert self_images.any()
        shortest = np.linalg.norm(cluster.edge_vec, axis=1).min()
        assert shortest > 1.0  # Å: no atoms on top of each other
