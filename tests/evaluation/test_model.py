import zipfile

import pytest
import torch

from equipot.errors import DeviceError, ModelFileError
from equipot.evaluation.model import find_checkpoint, is_deployed, load_model


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
