"""The GPU kernels without a GPU: their text runs on the CPU, and NVIDIA's compiler accepts it.

tests/ops/gpu stands in for the driver: it compiles each kernel as C++ and runs its blocks one after the
other, the threads of a block as fibers that meet at every exchange within a warp. All else is as on a GPU.
"""

import ctypes
import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import test_convolution
import test_tabulated_convolution
import torch
from ase.build import bulk
from derivatives import relative_errors, value_and_gradients
from test_edge_product import random_product

from equipot.config import AllegroConfig, NequIPConfig
from equipot.data import graph_from_atoms
from equipot.models.build import build_potential
from equipot.models.potential import predict
from equipot.ops import build

HERE = Path(__file__).parent / "gpu"
TOLERANCE = 1e-12  # sums of up to some thousand terms in another order


class Emulator:
    """``with emulator:`` sends tensors on the CPU to the GPU kernels.

    Without ``run`` their text is only kept, and results are arbitrary.
    """

    def __init__(self, directory: Path, run: bool = True):
        self.directory = directory
        self.equipot = ctypes.CDLL(str(build.build()))
        self.equipot.equipot_set_gpu_launcher.argtypes = [ctypes.c_void_p]
        compiler = [*build._compiler_command(), "-shared", "-fPIC", "-O1", "-w", "-fno-strict-aliasing"]
        library = directory / "emulator.so"
        command = [*compiler, "-std=gnu++20", f"-I{build.SOURCES}", str(HERE / "emulator.cpp"), "-ldl"]
        subprocess.run([*command, "-o", str(library)], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.launches.argtypes, self.library.launches.restype = [ctypes.c_void_p], ctypes.c_int64
        make = self.library.emulator
        make.argtypes, make.restype = [ctypes.c_char_p] * 2, ctypes.c_void_p
        kernels = shlex.join([*compiler, "-std=c++17", f"-I{HERE}"]) if run else ""
        self.launcher = make(str(directory).encode(), kernels.encode())

    def sources(self) -> list[Path]:
        """The text of all kernels that have run."""
        return sorted(self.directory.glob("*.cu"))

    def launches(self) -> int:
        """How many kernels have been started."""
        return self.library.launches(self.launcher)

    def __enter__(self):
        self.equipot.equipot_set_gpu_launcher(self.launcher)

    def __exit__(self, *exception):
        self.equipot.equipot_set_gpu_launcher(None)


@pytest.fixture(scope="session")
def emulator(kernels, tmp_path_factory):
    return Emulator(tmp_path_factory.mktemp("gpu-kernels"))


def compare(emulator, evaluate, tolerance=TOLERANCE, launches=True):
    """On the GPU kernels and on those of the CPU; returns what the former give."""
    before = emulator.launches()
    with emulator:
        found = evaluate()
    after = emulator.launches()
    assert (after > before) == launches
    expected = evaluate()
    assert emulator.launches() == after
    errors = relative_errors(found, expected)
    assert max(errors) < tolerance, errors
    return found


@pytest.mark.parametrize(
    "l_max, parity, channels",
    [(0, True, 3), (1, True, 33), (2, False, 1), (2, True, (40, 16, 7)), (3, False, 4), (3, True, 2)],
)
def test_convolution_and_its_derivatives(emulator, l_max, parity, channels):
    """The last atom has no edge."""
    kernel, _, arguments = test_convolution.random_convolution(l_max, parity, channels)
    compare(emulator, lambda: test_convolution.value_and_gradients(kernel, arguments))


def test_more_channels_than_a_block_has_threads(emulator):
    kernel, _, arguments = test_convolution.random_convolution(1, False, 150)
    compare(emulator, lambda: test_convolution.value_and_gradients(kernel, arguments))


def test_float32(emulator):
    kernel, _, arguments = test_convolution.random_convolution(2, True, 8, 5, 30, torch.float32)
    compare(emulator, lambda: test_convolution.value_and_gradients(kernel, arguments), 5e-6)


@pytest.mark.parametrize("num_atoms", [0, 4])
def test_no_edges(emulator, num_atoms):
    kernel, _, (x, sh, weights, _) = test_convolution.random_convolution(1, True, 2, 4, 1)
    kept = ((x, num_atoms), (sh, 0), (weights, 0))
    inputs = [item[:count].detach().requires_grad_() for item, count in kept]
    none = torch.empty(2, 0, dtype=torch.int64)
    compare(emulator, lambda: test_convolution.value_and_gradients(kernel, (*inputs, none)), launches=False)


def test_unsorted_edges_and_the_same_bits_every_time(emulator):
    kernel, _, (x, sh, weights, edge_index) = test_convolution.random_convolution(1, True, 2, num_edges=40)
    shuffled = edge_index[:, torch.randperm(40)].contiguous()
    evaluate = lambda: test_convolution.value_and_gradients(kernel, (x, sh, weights, shuffled))  # noqa: E731
    first, second = compare(emulator, evaluate), compare(emulator, evaluate)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_edges_that_change_in_place(emulator):
    """Edges are grouped once for a tensor, until it is written to."""
    kernel, _, (x, sh, weights, edge_index) = test_convolution.random_convolution(1, True, 2, num_edges=40)
    compare(emulator, lambda: [kernel(x, sh, weights, edge_index).detach()])
    edge_index.copy_(edge_index.flip(0))
    compare(emulator, lambda: [kernel(x, sh, weights, edge_index).detach()])
    with torch.inference_mode():
        edges = edge_index.clone()
        compare(emulator, lambda: [kernel(x, sh, weights, edges)])
        edges.copy_(edges.flip(0))
        compare(emulator, lambda: [kernel(x, sh, weights, edges)])


def test_edges_out_of_range_are_refused(emulator):
    kernel, _, (x, sh, weights, edge_index) = test_convolution.random_convolution(1, True, 2)
    with emulator, pytest.raises(RuntimeError, match="refers to atom"):
        kernel(x, sh, weights, edge_index + 10)


@pytest.mark.parametrize("channels, num_edges", [(2, 40), (33, 12)])
def test_tabulated_convolution_and_its_derivatives(emulator, channels, num_edges):
    """By the table too; some edges are longer than the cutoff."""
    kernel, _, inputs, edge_index = test_tabulated_convolution.random_convolution(channels, num_edges)
    compare(emulator, lambda: test_tabulated_convolution.value_and_gradients(kernel, inputs, edge_index))


def test_edges_of_an_interval_shared_out(emulator):
    """With 16 intervals, 2048 edges to each part."""
    kernel, _, (x, sh, length), edge_index = test_tabulated_convolution.random_convolution(1, 5000)
    table = kernel.radial.table().detach().requires_grad_()

    def evaluate():
        out = test_tabulated_convolution.with_table(kernel, table)(x, sh, length, edge_index)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [table])]

    compare(emulator, evaluate)


def test_parts_of_the_derivatives(emulator):
    """As training asks for them: forces by the geometry, then their gradient by features and table."""
    kernel, _, (x, sh, length), edge_index = test_tabulated_convolution.random_convolution(2)
    table = kernel.radial.table().detach().requires_grad_()

    def evaluate():
        out = test_tabulated_convolution.with_table(kernel, table)(x, sh, length, edge_index)
        forces = torch.autograd.grad(out.square().sum(), (sh, length), create_graph=True)
        by_x = torch.autograd.grad(out.square().sum(), [x], create_graph=True)
        loss = sum(item.square().sum() for item in (*forces, *by_x))
        return list(torch.autograd.grad(loss, (x, table)))

    compare(emulator, evaluate)


@pytest.mark.parametrize(
    "l_max, parity, channels", [(0, True, 5), (1, True, 33), (2, False, 3), (3, True, 2)]
)
def test_edge_product_and_its_derivatives(emulator, l_max, parity, channels):
    kernel, _, _, inputs, center = random_product(l_max, parity, channels)
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, center), inputs))


def test_edge_product_with_many_edges_of_few_atoms(emulator):
    """Unsorted, and enough of them for several blocks to share the outer sums."""
    kernel, _, _, inputs, center = random_product(1, False, 2, num_atoms=3, num_edges=1500)
    mixed_up = center[torch.randperm(1500)]
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, mixed_up), inputs))


def test_edge_product_without_edges(emulator):
    kernel, _, _, (tensors, environment), _ = random_product(1, True, 2, num_atoms=4)
    none = torch.empty(0, dtype=torch.int64)
    inputs = [tensors[:0].detach().requires_grad_(), environment]
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, none), inputs))


@pytest.mark.parametrize(
    "config",
    [
        NequIPConfig(type="nequip", dtype="float64", cutoff=4.0, layers=2, channels=4, l_max=1),
        AllegroConfig(type="allegro", dtype="float64", cutoff=4.0, channels=4, l_max=1),
    ],
    ids=["nequip", "allegro"],
)
def test_training_step_of_a_model(emulator, config):
    """Energy, forces, stress, and the gradient of a loss of them by the parameters."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=0)
    crystal = graph_from_atoms(atoms, ["Na", "Cl"], 4.0)
    torch.manual_seed(0)
    potential = build_potential(config, ["Na", "Cl"], 10.0, [-1.0, -2.0], 1.0).train()
    parameters = [p for p in potential.parameters() if p.requires_grad]

    def evaluate():
        found = predict(potential, crystal)
        loss = found.energy.sum() + found.forces.square().sum() + found.stress.square().sum()
        gradients = torch.autograd.grad(loss, parameters)
        return [item.detach() for item in (found.energy, found.forces, found.stress, *gradients)]

    compare(emulator, evaluate, 1e-10)  # as in tests/models/test_kernels.py


def nvrtc(source, major, minor):
    """Size of the machine code, and the compiler's messages; -1 and an error's message where it fails."""
    library = ctypes.CDLL(str(build.build()))
    library.equipot_compile_for_gpu.restype = ctypes.c_int64
    library.equipot_compile_for_gpu.argtypes = [
        ctypes.c_char_p,
        *[ctypes.c_int] * 2,
        ctypes.c_char_p,
        ctypes.c_size_t,
    ]
    log = ctypes.create_string_buffer(1 << 20)
    size = library.equipot_compile_for_gpu(source.encode(), major, minor, log, len(log))
    return size, log.value.decode()


def nvrtc_library():
    """The file of NVIDIA's package, None if it is not installed."""
    if importlib.util.find_spec("nvidia") is None:
        return None
    folders = importlib.util.find_spec("nvidia").submodule_search_locations
    found = [file for folder in folders for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"))]
    return found[0] if found else None


@pytest.mark.parametrize("capability", [(7, 0), (8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nvidias_compiler_accepts_them_and_they_fit_into_registers(kernels, tmp_path, capability, dtype):
    """All kernels of usual models. None may keep what it works on in memory (spill), but for what the
    compiler prefers to: up to 8 bytes, to let more warps run."""
    if nvrtc_library() is None:
        pytest.skip("the package nvidia-cuda-nvrtc is not installed")
    ctypes.CDLL(str(nvrtc_library()), ctypes.RTLD_GLOBAL)
    with (recorder := Emulator(tmp_path, run=False)):
        kernel, _, arguments = test_convolution.random_convolution(2, True, 64, dtype=dtype)
        test_convolution.value_and_gradients(kernel, arguments)
        kernel, _, inputs, edge_index = test_tabulated_convolution.random_convolution(64, dtype=dtype)
        test_tabulated_convolution.value_and_gradients(kernel, inputs, edge_index)
        kernel, _, _, inputs, center = random_product(2, True, 64, dtype=dtype)
        value_and_gradients(lambda *inputs: kernel(*inputs, center), inputs)
    for file in recorder.sources():
        size, log = nvrtc(file.read_text(), *capability)
        assert size > 0, log
        used = re.search(r"Used (\d+) registers", log)
        spilt = re.search(r"(\d+) bytes spill stores", log)
        assert used and spilt and int(spilt[1]) <= 16, log


def test_what_is_missing_is_said(kernels):
    """torch without CUDA brings no NVRTC."""
    if torch.version.cuda is not None or nvrtc_library() is not None:
        pytest.skip("NVRTC is installed")
    size, message = nvrtc("", 8, 0)
    assert size == -1 and "libnvrtc.so" in message and "EQUIPOT_KERNELS=off" in message
