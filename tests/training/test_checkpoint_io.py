"""Checkpoints survive a full disk and a kill in the middle of writing."""

import os
import resource

import pytest
import torch

from equipot.errors import TrainingError
from equipot.run_directory import RunDirectory
from equipot.training.checkpoints import AtomicCheckpointIO, copy_checkpoint

OLD, NEW = {"weights": torch.zeros(3)}, {"weights": torch.ones(5000)}


@pytest.fixture
def directory(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    AtomicCheckpointIO().save_checkpoint(OLD, directory.last)
    return directory


@pytest.fixture
def full_disk():
    """No file can grow beyond 4 kB; the error differs from that of a full disk in its number alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_old(directory):
    loaded = AtomicCheckpointIO().load_checkpoint(directory.last)
    assert torch.equal(loaded["weights"], OLD["weights"])


def test_full_disk_keeps_the_previous_checkpoint_and_says_so(directory, full_disk):
    with pytest.raises(TrainingError, match=r"last\.ckpt: .* The previous one under that name is intact"):
        AtomicCheckpointIO().save_checkpoint(NEW, directory.last)
    assert_old(directory)
    assert [path.name for path in directory.checkpoints.iterdir()] == ["last.ckpt"]


def test_full_disk_during_a_copy(directory, tmp_path, full_disk):
    source = tmp_path / "big.ckpt"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    source.write_bytes(bytes(10000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    with pytest.raises(TrainingError, match="Cannot write the checkpoint"):
        copy_checkpoint(source, directory.last)
    assert_old(directory)


def test_kill_keeps_the_previous_checkpoint_and_the_next_run_cleans_up(directory, monkeypatch):
    child = os.fork()
    if child == 0:
        # The last moment before the rename: everything is written, nothing has its name yet.
        monkeypatch.setattr(os, "fsync", lambda _: os._exit(9))
        AtomicCheckpointIO().save_checkpoint(NEW, directory.last)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert_old(directory)
    assert len(list(directory.checkpoints.iterdir())) == 2
    directory.create()
    assert [path.name for path in directory.checkpoints.iterdir()] == ["last.ckpt"]


def test_new_checkpoint_replaces_the_old_one(directory):
    AtomicCheckpointIO().save_checkpoint(NEW, directory.last)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(directory.last)["weights"], NEW["weights"])
