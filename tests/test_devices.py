"""The device that is chosen, and what is said of a GPU that is left unused."""

import logging
from pathlib import Path

import pytest
import torch

from equipot import devices
from equipot.config import RunConfig
from equipot.training.devices import choose_device


@pytest.fixture
def gpu_without_cuda(monkeypatch):
    """A machine with a GPU, and a torch for CPUs."""
    monkeypatch.setattr(devices, "nvidia_driver", lambda: [Path("/dev/nvidia0")])
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    devices._warn_of_unused_gpu.cache_clear()
    yield
    devices._warn_of_unused_gpu.cache_clear()


@pytest.mark.parametrize(
    "choose", [lambda: devices.resolve_device("auto"), lambda: choose_device(RunConfig())]
)
def test_a_gpu_that_torch_cannot_use_is_mentioned_once(gpu_without_cuda, caplog, choose):
    with caplog.at_level(logging.WARNING, logger="equipot"):
        assert [choose(), choose()] == ["cpu", "cpu"]
    (record,) = caplog.records
    assert "/dev/nvidia0" in record.getMessage() and "without CUDA" in record.getMessage()


def test_nothing_is_said_where_the_cpu_was_chosen(gpu_without_cuda, caplog):
    with caplog.at_level(logging.WARNING, logger="equipot"):
        assert devices.resolve_device("cpu") == "cpu"
        assert choose_device(RunConfig(device="cpu")) == "cpu"
    assert not caplog.records


def test_the_library_of_a_driver_is_reason_to_ask_torch(monkeypatch):
    """The files of a GPU may not be there before CUDA is first used."""
    monkeypatch.setattr(devices, "nvidia_driver", list)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda name: None)
    assert devices.resolve_device("auto") == "cuda"
    assert devices.resolve_device("cuda:1") == "cuda:1"


def test_nothing_is_said_where_there_is_no_gpu(gpu_without_cuda, caplog, monkeypatch):
    monkeypatch.setattr(devices, "nvidia_driver", list)
    with caplog.at_level(logging.WARNING, logger="equipot"):
        devices.resolve_device("auto")
    assert not caplog.records
