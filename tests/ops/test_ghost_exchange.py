"""Features of atoms that other processes own: by whom and in which thread they are exchanged."""

import ctypes
import subprocess
import threading
from pathlib import Path

import pytest
import torch

from equipot.compile import compiler_command
from equipot.ops import build

pytestmark = pytest.mark.usefixtures("kernels")


@pytest.fixture(scope="module")
def library(kernels, tmp_path_factory):
    path = tmp_path_factory.mktemp("exchange") / "exchange.so"
    source = Path(__file__).with_name("exchange.cpp")
    options = ["-shared", "-fPIC", "-std=gnu++20", f"-I{build.KERNELS}"]
    subprocess.run([*compiler_command(), *options, str(source), "-o", str(path)], check=True)
    library = ctypes.CDLL(str(path))
    library.images.argtypes, library.images.restype = [ctypes.c_int64], ctypes.c_void_p
    library.called_by_this_thread.argtypes = [ctypes.c_void_p]
    library.called_by_this_thread.restype = ctypes.c_bool
    return library


@pytest.fixture
def exchange(library):
    """Attached to this thread: two owned atoms; ghosts are images of the first."""
    address = library.images(2)
    torch.ops.equipot.attach_exchange(address)
    yield address
    torch.ops.equipot.attach_exchange(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ghosts_get_features_and_give_gradients_back(library, exchange, dtype):
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    everyone = torch.ops.equipot.ghost_exchange(features, 4)
    assert everyone.tolist() == [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [1.0, 2.0]]
    weights = torch.arange(8, dtype=dtype).view(4, 2)
    gradient = torch.autograd.grad((everyone * weights).sum(), features)[0]
    assert gradient.tolist() == [[0.0 + 4.0 + 6.0, 1.0 + 5.0 + 7.0], [2.0, 3.0]]
    assert library.called_by_this_thread(exchange)


def test_backward_stays_in_the_thread_of_the_exchange(library):
    """On a GPU it would run in another one, and MPI may be open to one thread only."""
    assert torch._C._is_multithreading_enabled()
    torch.ops.equipot.attach_exchange(library.images(2))
    assert not torch._C._is_multithreading_enabled()
    torch.ops.equipot.attach_exchange(0)
    assert torch._C._is_multithreading_enabled()


def test_another_thread_is_refused(exchange):
    """It would go on as if there were no ghosts."""
    messages = []

    def evaluate():
        try:
            torch.ops.equipot.ghost_exchange(torch.zeros(2, 3), 4)
        except RuntimeError as error:
            messages.append(str(error))

    thread = threading.Thread(target=evaluate)
    thread.start()
    thread.join()
    assert len(messages) == 1 and "attached to another thread" in messages[0]


def test_without_an_exchange_every_atom_is_owned():
    features = torch.randn(3, 2, requires_grad=True)
    assert torch.ops.equipot.num_owned(torch.zeros(3, dtype=torch.int64)) == 3
    assert torch.equal(torch.ops.equipot.ghost_exchange(features, 3), features)
