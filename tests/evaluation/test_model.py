import zipfile

import pytest
import torch

from equipot.config import LabelsConfig, UnitsConfig, config_from_dict
from equipot.data.statistics import Statistics
from equipot.deploy import torchscript
from equipot.deploy.checkpoint import describe
from equipot.deploy.export import deploy
from equipot.errors import DeviceError, ModelFileError
from equipot.evaluation.model import find_checkpoint, is_deployed, load_model
from equipot.models.build import build_potential


def test_run_directory_means_its_best_checkpoint(tmp_path):
    best = tmp_path / "checkpoints" / "best.ckpt"
    best.parent.mkdir()
    best.touch()
    assert find_checkpoint(tmp_path) == best
    assert find_checkpoint(best) == best


def test_missing_model_is_named(tmp_path):
    with pytest.raises(ModelFileError, match=r"No model file or run directory.*nothing"):
        find_checkpoint(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"without checkpoints/best\.ckpt"):
        find_checkpoint(tmp_path)


def test_deployed_files_and_checkpoints_are_told_apart(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    module.save(str(tmp_path / "a.pt"))
    assert not is_deployed(tmp_path / "a.ckpt")
    assert is_deployed(tmp_path / "a.pt")


def test_truncated_file_is_refused(tmp_path):
    torch.save({"x": torch.zeros(1000)}, tmp_path / "whole.ckpt")
    content = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "half.ckpt").write_bytes(content[: len(content) // 2])
    assert not zipfile.is_zipfile(tmp_path / "half.ckpt")
    with pytest.raises(ModelFileError, match="damaged"):
        load_model(tmp_path / "half.ckpt", "cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_absent_device_is_refused(tmp_path):
    torch.save({}, tmp_path / "a.ckpt")
    with pytest.raises(DeviceError, match="cuda"):
        load_model(tmp_path / "a.ckpt", "cuda")


@pytest.fixture
def checkpoint(tmp_path):
    """Of a tiny model that was trained on data in kcal/mol and Bohr, with a label under another name."""
    network = {"type": "allegro", "l_max": 1, "layers": 1, "channels": 1, "scalar_channels": 2}
    data = {"train": "gone.xyz", "units": {"energy": "kcal/mol", "length": "Bohr"}}
    config = config_from_dict(
        {
            "data": data | {"labels": {"energy": "dft_energy", "stress": None}},
            "model": network | {"dtype": "float64"},
        }
    )
    statistics = Statistics(["Cu"], [-3.0], "given", 0.1, 12.0, 1.5, 4, 16, [16], {"energy": 4, "forces": 16})
    built_from = {"species": ["Cu"], "avg_num_neighbors": 12.0, "atomic_energies": [-3.0], "force_rms": 1.5}
    weights = build_potential(config.model, **built_from).state_dict()
    state = {f"potential.{name}": value for name, value in weights.items()}
    extra = describe(config, statistics, built_from)
    torch.save({"state_dict": state, "equipot": extra}, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_what_a_model_knows_of_its_data_is_the_same_in_both_files(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(torchscript, "_deviations_in_fresh_process", lambda *_: [])
    deploy(checkpoint, tmp_path / "model.pt")
    for path in (checkpoint, tmp_path / "model.pt"):
        loaded = load_model(path, "cpu")
        assert loaded.units == UnitsConfig(energy="kcal/mol", length="Bohr")
        assert loaded.labels == LabelsConfig(energy="dft_energy", stress=None)
        assert (loaded.species, loaded.cutoff) == (["Cu"], 5.0)
