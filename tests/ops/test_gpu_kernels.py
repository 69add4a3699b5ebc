"""The GPU kernels without a GPU: their text runs on the CPU, and NVIDIA's compiler accepts it.

tests/ops/gpu stands in for the driver: it compiles each kernel as C++ and runs its blocks one after the
other, the threads of a block as fibers that meet at every exchange within a warp. All else is as on a GPU.
"""

import ctypes
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import test_convolution
import test_gate
import test_interaction
import test_linear
import test_tabulated_convolution
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from derivatives import relative_errors, value_and_gradients
from e3nn import o3
from test_edge_product import random_product
from torch.utils._python_dispatch import TorchDispatchMode

from equipot.compile import compiler_command
from equipot.config import AllegroConfig, NequIPConfig, config_from_dict
from equipot.data import graph_from_atoms
from equipot.graph import edge_vectors
from equipot.models.build import build_potential
from equipot.models.nequip import NequIP
from equipot.models.predict import predict
from equipot.nn.linear import SpeciesLinear
from equipot.ops import build
from equipot.ops.operators import know_types
from equipot.training.module import PotentialModule
from equipot.training.run import train

HERE = Path(__file__).parent / "gpu"
TOLERANCE = 1e-12  # sums of up to some thousand terms in another order


def compiler() -> list[str]:
    return [*compiler_command(), "-shared", "-fPIC", "-O1", "-w", "-fno-strict-aliasing"]


class Emulator:
    """``with emulator:`` sends tensors on the CPU to the GPU kernels.

    Without ``run`` their text is only kept, and results are arbitrary.
    """

    def __init__(self, library: Path, directory: Path, run: bool = True):
        self.directory = directory
        self.equipot = ctypes.CDLL(str(build.build()))
        self.equipot.equipot_set_gpu_launcher.argtypes = [ctypes.c_void_p]
        kernels = [*compiler(), "-std=c++17", f"-I{HERE}"]
        if run:  # the header once, for all kernels
            header = [HERE / "cuda_on_cpu.h", "-o", directory / "cuda_on_cpu.h.gch"]
            subprocess.run([*kernels, "-x", "c++-header", *header], check=True)
        self.library = ctypes.CDLL(str(library))
        self.library.launches.argtypes, self.library.launches.restype = [ctypes.c_void_p], ctypes.c_int64
        make = self.library.emulator
        make.argtypes, make.restype = [ctypes.c_char_p] * 2, ctypes.c_void_p
        self.launcher = make(str(directory).encode(), shlex.join(kernels if run else []).encode())

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


@pytest.fixture(scope="module")
def launcher(kernels, tmp_path_factory) -> Path:
    """emulator.cpp, compiled."""
    library = tmp_path_factory.mktemp("gpu-launcher") / "emulator.so"
    folders = [f"-I{build.GPU}", f"-I{build.KERNELS}"]
    command = [*compiler(), "-std=gnu++20", *folders, HERE / "emulator.cpp", "-ldl", "-o", library]
    subprocess.run(command, check=True)
    return library


@pytest.fixture(scope="module")
def emulator(launcher, tmp_path_factory):
    return Emulator(launcher, tmp_path_factory.mktemp("gpu-kernels"))


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
    [
        *((0, True, 3), (1, True, 33), (2, False, 1), (2, True, (40, 16, 7)), (3, False, 4), (3, True, 2)),
        *((1, True, 64), (2, True, (8, 34, 66))),
    ],
)
def test_convolution_and_its_derivatives(emulator, l_max, parity, channels):
    """The last atom has no edge. Of 34 channels and more, if even, a thread takes two."""
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


@pytest.mark.parametrize("channels, num_edges", [(2, 40), (33, 12), (34, 12)])
def test_tabulated_convolution_and_its_derivatives(emulator, channels, num_edges):
    """By the table too; some edges are longer than the cutoff."""
    kernel, inputs, edge_index = test_tabulated_convolution.random_convolution(channels, num_edges)
    compare(emulator, lambda: test_tabulated_convolution.value_and_gradients(kernel, inputs, edge_index))


@pytest.mark.parametrize("channels", [3, 36])
def test_few_atoms_with_many_edges_get_several_warps_each(emulator, channels):
    """Their sums are added in order: same bits."""
    kernel, inputs, edge_index = test_tabulated_convolution.random_convolution(channels, 150)

    def evaluate():
        inputs_now = [item.detach().requires_grad_() for item in inputs]
        out = kernel(*inputs_now, edge_index)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), inputs_now)]

    first, second = compare(emulator, evaluate), compare(emulator, evaluate)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_arrays_that_begin_between_two_loads(emulator):
    """Rows of a larger array, whose first element lies at no multiple of 16 bytes."""
    kernel, (x, sh, length), edge_index = test_tabulated_convolution.random_convolution(34, 12)
    inside = torch.cat([x.new_zeros(1), x.detach().flatten()])[1:].view_as(x)
    compare(emulator, lambda: [kernel(inside, sh, length, edge_index).detach()])


def test_geometry_that_changes_in_place(emulator):
    """Records of edges are made once for their tensors, until these are written to."""
    kernel, inputs, edge_index = test_tabulated_convolution.random_convolution(2, 40)
    x, sh, length = (item.detach() for item in inputs)
    for changed in (length, sh, edge_index):
        compare(emulator, lambda: [kernel(x, sh, length, edge_index).detach()])
        changed.copy_(changed.flip(0))
    compare(emulator, lambda: [kernel(x, sh, length, edge_index).detach()])


def test_records_are_made_once_for_all_layers(launcher, tmp_path):
    """And for both passes: nine kernels go over the edges of four layers."""
    potential, inputs = evaluation(NEQUIP)
    with (recorder := Emulator(launcher, tmp_path, run=False)):
        potential(*inputs)
    texts = {file.stem: file.read_text() for file in recorder.sources()}
    launches = [line.split()[0] for line in (tmp_path / "launches.txt").read_text().splitlines()]
    assert sum("// records" in texts[stem] for stem in launches) == 1
    passes = [texts[stem] for stem in launches if re.search("// (center|neighbor) pass", texts[stem])]
    assert len(passes) == 8
    assert all("a.records" in text and "a.sh " not in text and "locate" not in text for text in passes)


def test_edges_of_an_interval_shared_out(emulator):
    """With 16 intervals, 312 edges to each of 16 parts."""
    kernel, (x, sh, length), edge_index = test_tabulated_convolution.random_convolution(1, 5000)
    table = kernel.radial.table().detach().requires_grad_()

    def evaluate():
        out = test_tabulated_convolution.with_table(kernel, table)(x, sh, length, edge_index)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [table])]

    compare(emulator, evaluate)


def test_parts_of_the_derivatives(emulator):
    """As training asks for them: forces by the geometry, then their gradient by features and table."""
    kernel, (x, sh, length), edge_index = test_tabulated_convolution.random_convolution(2)
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
    kernel, _, inputs, center = random_product(l_max, parity, channels)
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, center), inputs))


def test_edge_product_with_many_edges_of_few_atoms(emulator):
    """Unsorted, and enough of them for several blocks to share the outer sums."""
    kernel, _, inputs, center = random_product(1, False, 2, num_atoms=3, num_edges=1500)
    mixed_up = center[torch.randperm(1500)]
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, mixed_up), inputs))


def test_edge_product_without_edges(emulator):
    kernel, _, (tensors, environment), _ = random_product(1, True, 2, num_atoms=4)
    none = torch.empty(0, dtype=torch.int64)
    inputs = [tensors[:0].detach().requires_grad_(), environment]
    compare(emulator, lambda: value_and_gradients(lambda *inputs: kernel(*inputs, none), inputs))


@pytest.mark.parametrize("species", [1, 3])
@pytest.mark.parametrize("channels", [1, 7, 40])
def test_linear_maps_and_their_derivatives(emulator, species, channels):
    """One species has no atom; 2e comes out of nothing, 0o goes nowhere."""
    inputs, (blocks, types, dim) = test_linear.random_map(channels, 30, species)
    types = types.clamp(max=max(species - 2, 0))
    function = lambda x, w: torch.ops.equipot.linear(x, w, blocks, types, dim)  # noqa: E731
    compare(emulator, lambda: value_and_gradients(function, inputs), launches=False)


def test_linear_map_back_to_several_blocks(emulator):
    """Transposed, two blocks end in one irrep; and rows there are none of."""
    blocks = torch.tensor([[3, 5, 2, 0, 0], [3, 5, 4, 0, 6]])
    types = torch.zeros(0, dtype=torch.int64)
    weights = torch.randn(1, 30, dtype=torch.float64)
    for rows in (0, 9):
        x = torch.randn(rows, 18, dtype=torch.float64)
        function = lambda x=x: [torch.ops.equipot.linear(x, weights, blocks, types, 15, True)]  # noqa: E731
        compare(emulator, function, launches=False)


def test_types_that_no_species_has_are_refused(emulator):
    (x, weights), (blocks, types, dim) = test_linear.random_map(2, 9)
    with emulator, pytest.raises(IndexError, match="types must be"):
        torch.ops.equipot.linear(x, weights, blocks, types + 1, dim)


@pytest.mark.parametrize("channels, owned", [(1, 60), (7, 25), (33, 60)])
def test_interaction_and_its_gradients(emulator, channels, owned):
    """25 atoms of 60 are owned: the others send, and receive nothing."""
    given = test_interaction.arguments(channels, owned=owned)
    compare(emulator, lambda: test_interaction.value_and_gradients(torch.ops.equipot.interaction, given))


@pytest.mark.parametrize("irreps", [test_gate.ALL, "6x0e", "33x0e + 20x1o + 70x2e"])
def test_gate_and_its_derivatives(emulator, irreps):
    x, others = test_gate.arguments(irreps)
    compare(emulator, lambda: test_gate.derivatives(torch.ops.equipot.gate, x, others, 3))


def test_gate_with_odd_scalars(emulator):
    """They appear from six layers on."""
    network = NequIP(num_species=1, cutoff=3.0, avg_num_neighbors=7.0, layers=6, channels=3).double().eval()
    layer = next(layer for layer in network.layers if layer.gate.num_odd > 0)
    torch.manual_seed(0)
    edge_index = torch.stack([torch.arange(40) // 5, torch.randint(8, (40,))])
    shapes = (8, layer.irreps_in.dim), (8, layer.gate.irreps_in.dim), (40, 9)
    arrays = [*(torch.randn(shape) for shape in shapes), 3.0 * torch.rand(40, 1)]
    inputs = [array.double().requires_grad_() for array in arrays]

    def evaluate():
        out = layer._interact(*inputs, edge_index)
        gradient = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
        return [out.detach(), *torch.autograd.grad(out, inputs, gradient)]

    compare(emulator, evaluate)


@pytest.mark.parametrize("rows, segments, columns", [(40, 7, 3), (3000, 2, 1), (0, 4, 3), (40, 0, 3)])
def test_segment_sum_and_its_derivatives(emulator, rows, segments, columns):
    """Unsorted; 3000 rows of 2 segments are shared by several threads; the last of 7 segments is empty."""
    torch.manual_seed(0)
    rows = rows if segments else 0
    index = torch.stack([torch.zeros(rows, dtype=torch.int64), torch.randint(max(segments - 1, 1), (rows,))])
    values = torch.randn(rows, columns, dtype=torch.float64, requires_grad=True)
    function = lambda values: torch.ops.equipot.segment_sum(values, index, 1, segments).pow(3)  # noqa: E731
    compare(emulator, lambda: value_and_gradients(function, [values]), launches=rows > 0)


def evaluation(config):
    """(potential in eval mode, the contract's arguments) of a crystal with two species."""
    atoms = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms.rattle(0.1, seed=0)
    crystal = graph_from_atoms(atoms, ["Na", "Cl"], config.cutoff)
    torch.manual_seed(0)
    potential = build_potential(config, ["Na", "Cl"], 10.0, [-1.0, -2.0], 1.0).eval().requires_grad_(False)
    owned = torch.ones_like(crystal.atom_types, dtype=torch.bool)
    return potential, (edge_vectors(crystal), crystal.edge_index, crystal.atom_types, owned)


NEQUIP = NequIPConfig(type="nequip", dtype="float64", cutoff=4.0, layers=4, channels=3)
ALLEGRO = AllegroConfig(type="allegro", dtype="float64", cutoff=4.0, channels=4, zbl=True)


@pytest.mark.parametrize("config", [NEQUIP, ALLEGRO], ids=["nequip", "allegro"])
def test_evaluation_of_a_model(emulator, config):
    """Energies, forces and virials in eval mode."""
    potential, inputs = evaluation(config)
    compare(emulator, lambda: list(potential(*inputs)))


# They compute nothing.
VIEWS = {
    "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "narrow", "new_empty",
    "permute", "reshape", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "_unsafe_view", "view",
}  # fmt: skip


class Operators(TorchDispatchMode):
    """Counts the operators that compute something, and keeps the indices by which rows are added."""

    def __init__(self):
        super().__init__()
        self.names, self.added_by = Counter(), []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = str(function).split(".")[1]
        if name not in VIEWS:
            self.names[name] += 1
        if name.startswith(("index_add", "scatter_add", "index_put")):
            self.added_by.append(arguments[2])
        return function(*arguments, **(keywords or {}))


# What makes the host wait for a GPU: their results' sizes or values come back.
WAITING = {
    "item", "_local_scalar_dense", "nonzero", "bincount", "masked_select", "unique", "_unique2", "equal",
    "is_nonzero",
}  # fmt: skip


def test_types_that_the_host_has_told(emulator):
    """Maps of each species, and their gradients, as by types that are read on the GPU, which are not here."""
    layer = SpeciesLinear(o3.Irreps("5x0e + 3x1o"), o3.Irreps("4x0e + 6x1o"), 3).double()
    x, told = torch.randn(40, 14, dtype=torch.float64), torch.randint(0, 3, (40,))

    def evaluate(types):
        given = x.clone().requires_grad_()
        out = torch.ops.equipot.linear(given, layer.packed(), layer.table, types, layer.dim_out)
        return [out.detach(), *torch.autograd.grad(out.square().sum(), [given, *layer.parameters()])]

    expected = evaluate(told)
    with emulator:
        unreadable = torch.full_like(told, -1)
        with pytest.raises(IndexError, match="types must be from 0 to 2"):
            evaluate(unreadable)
        know_types(unreadable, told, 3)
        found = evaluate(unreadable)
        with pytest.raises(RuntimeError, match="not the same types"):
            know_types(unreadable, told[1:], 3)
    assert max(relative_errors(found, expected)) < TOLERANCE


LINEAR = {"equipot::linear", "equipot::linear_outer_sum"}
NOT_WAITING = {"aten::_assert_async"}  # on a GPU; it looks at the item on a CPU


@pytest.mark.parametrize("config", [NEQUIP, ALLEGRO], ids=["nequip", "allegro"])
def test_evaluation_does_not_wait_for_the_gpu(emulator, config):
    """After the first one, from which the order of the species is known. Inside our operators neither."""
    potential, inputs = evaluation(config)
    with emulator:
        potential(*inputs)
        with torch.autograd.profiler.profile() as profiler:
            potential(*inputs)
    events = [e for e in profiler.function_events if not _within(e, NOT_WAITING)]
    assert any(_within(e.cpu_parent, {"equipot::linear", "equipot::atom_product"}) for e in events)
    names = {event.name.removeprefix("aten::").rstrip("_") for event in events}
    assert not names & WAITING
    # Nothing is ordered any more: neither edges nor species, whose numbers would have to be waited for.
    # Allegro's layers share their edges' centers, which are a new tensor in each evaluation.
    sorts = sum(event.name == "aten::sort" for event in events)
    assert sorts == (1 if config is ALLEGRO else 0)


@pytest.mark.parametrize(
    "model", [{"type": "nequip", "layers": 2}, {"type": "allegro"}], ids=["nequip", "allegro"]
)
def test_step_of_training_does_not_wait_for_the_gpu(emulator, tmp_path, monkeypatch, model):
    """Forward, backward, Muon, averages, sums of errors, for edges not seen before: only to see the loss."""
    for seed in range(6):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[0] = "Au"
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.write(tmp_path / "train.xyz", append=True)
    step, profiles = PotentialModule.training_step, []

    def profiled(*arguments):
        with torch.autograd.profiler.profile() as profiler:
            step(*arguments)
        profiles.append(profiler)

    monkeypatch.setattr(PotentialModule, "training_step", profiled)
    training = {"epochs": 1, "batch_size": 2, "ema": 0.9, "schedule": {"warmup_epochs": 0}}
    config = {
        "data": {"train": str(tmp_path / "train.xyz"), "validation": 2},
        "model": {**model, "cutoff": 4.0, "l_max": 1, "channels": 4, "dtype": "float64"},
        "training": {**training, "loss": {"stress": 1.0}},
        "run": {"directory": str(tmp_path / "run"), "device": "cpu"},
    }
    with emulator:
        train(config_from_dict(config))
    assert len(profiles) == 2
    passed = {*NOT_WAITING, "Optimizer.step#AdamW.step"}  # which counts steps on the host
    events = [event for event in profiles[-1].function_events if not _within(event, passed)]
    names = Counter(event.name.removeprefix("aten::").rstrip("_") for event in events)
    assert names["equipot::linear"] or names["equipot::atom_product"]
    # To know how many atoms each species has, the types would have to be read.
    assert not any(event.name == "aten::sort" and _within(event, LINEAR) for event in events)
    # lift_fresh: numbers that are not pinned on their way to the device are waited for, too.
    waits = {name: names[name] for name in WAITING | {"lift_fresh"} if names[name]}
    assert waits == {"item": 1, "_local_scalar_dense": 1}


def _within(event, names):
    while event is not None and event.name not in names:
        event = event.cpu_parent
    return event is not None


@pytest.mark.parametrize("config", [NEQUIP, ALLEGRO], ids=["nequip", "allegro"])
def test_no_two_threads_add_to_one_place(emulator, config):
    """Forces are the same bits every time: where rows are added by an index, no index comes twice."""
    potential, inputs = evaluation(config)
    with emulator, Operators() as operators:
        potential(*inputs)
    assert not {"scatter_add", "index_put", "embedding_dense_backward"} & set(operators.names)
    for index in operators.added_by:
        assert len(index.unique()) == len(index)


def test_number_of_operators(emulator):
    """Of an evaluation of four layers; 402 when linear maps, gate and sums were torch's own on a GPU."""
    potential, inputs = evaluation(NEQUIP)
    potential.network.tabulate(128)  # as deployed
    with emulator:
        potential(*inputs)
        with Operators() as operators:
            potential(*inputs)
    assert operators.names.total() <= 170, operators.names


@pytest.mark.parametrize("channels", [(64, 64, 64), (128, 128, 128), (128, 64, 32), (33, 33, 33)])
def test_no_warp_is_started_without_channels(launcher, tmp_path, channels):
    """Blocks are of two warps where every group of paths fills them, of one otherwise."""
    kernel, _, arguments = test_convolution.random_convolution(2, True, channels)
    with (recorder := Emulator(launcher, tmp_path, run=False)):
        test_convolution.value_and_gradients(kernel, arguments)
    assert recorder.sources()
    for file in recorder.sources():
        source = file.read_text()
        threads = int(re.search(r"__launch_bounds__\((\d+)\)", source)[1])
        groups = re.findall(r"typedef Channels<(\d)> V;  // of (\d+)", source)
        warps = [-(-int(channels) // (32 * int(width))) for width, channels in groups]
        blocks = int(re.findall(r"blockIdx\.y < (\d+)", source)[-1])
        assert threads == (64 if all(number % 2 == 0 for number in warps) else 32)
        assert blocks * (threads // 32) == sum(warps)


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


@pytest.fixture(scope="module")
def usual_kernels(request, launcher, tmp_path_factory) -> list[str]:
    """The text of all kernels of usual models."""
    dtype = request.param
    with (recorder := Emulator(launcher, tmp_path_factory.mktemp("usual"), run=False)):
        kernel, _, arguments = test_convolution.random_convolution(2, True, 64, dtype=dtype)
        test_convolution.value_and_gradients(kernel, arguments)
        kernel, inputs, edge_index = test_tabulated_convolution.random_convolution(64, dtype=dtype)
        test_tabulated_convolution.value_and_gradients(kernel, inputs, edge_index)
        kernel, _, inputs, center = random_product(2, True, 64, dtype=dtype)
        value_and_gradients(lambda *inputs: kernel(*inputs, center), inputs)
        given = test_interaction.arguments(64, dtype=dtype)
        test_interaction.value_and_gradients(torch.ops.equipot.interaction, given)
        torch.ops.equipot.segment_sum(given[2].detach(), given[5], 0, 60)
    return [file.read_text() for file in recorder.sources()]


@pytest.mark.parametrize(
    ("usual_kernels", "capability"),
    [(torch.float32, (8, 0)), (torch.float32, (9, 0)), (torch.float64, (9, 0))],  # half a minute each
    indirect=["usual_kernels"],
)
def test_nvidias_compiler_accepts_them_and_they_fit_into_registers(usual_kernels, capability):
    """None may keep what it works on in memory (spill), but for what the compiler prefers to: up to 8 bytes,
    to let more warps run."""
    if nvrtc_library() is None:
        pytest.skip("the package nvidia-cuda-nvrtc is not installed")
    ctypes.CDLL(str(nvrtc_library()), ctypes.RTLD_GLOBAL)
    for arguments in ("GpuArrays", "GpuRecordArrays", "GpuProductArrays", "GpuGateArrays", "GpuSumArrays"):
        assert any(f"(const {arguments}<T> a)" in source for source in usual_kernels)
    for source in usual_kernels:
        size, log = nvrtc(source, *capability)
        assert size > 0, log
        used = re.search(r"Used (\d+) registers", log)
        spilt = re.search(r"(\d+) bytes spill stores", log)
        assert used and spilt and int(spilt[1]) <= 16, log


@pytest.mark.parametrize("usual_kernels", [torch.float32], indirect=True)
def test_the_same_text_compiles_for_amds_gpus(usual_kernels, tmp_path):
    """With wavefronts of 64 threads; nothing is spilled. Only the text: there is no driver for them."""
    clang = shutil.which("clang++")
    targets = (
        subprocess.run([clang, "-print-targets"], capture_output=True, text=True).stdout if clang else ""
    )
    if "amdgcn" not in targets:
        pytest.skip("no clang++ that compiles for amdgcn")
    options = ["--cuda-device-only", "-nogpuinc", "-nogpulib", "-O3", "-std=c++17", "-w", "-S"]
    header = HERE / "cuda_as_hip.h"
    for source in usual_kernels:
        (text := tmp_path / "kernel.cu").write_text(source)
        command = [clang, "-x", "hip", "--offload-arch=gfx90a", *options, "-include", header]
        subprocess.run([*command, "-o", tmp_path / "kernel.s", text], check=True)
        assembly = (tmp_path / "kernel.s").read_text()
        assert re.search(r"vgpr_spill_count: *0\b", assembly), source.splitlines()[0]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch brings NVRTC")
def test_what_is_missing_is_said(kernels):
    """torch without CUDA brings no NVRTC. In a process of its own, for this one may have loaded it."""
    code = f"""
import ctypes, torch
library = ctypes.CDLL({str(build.build())!r})
log = ctypes.create_string_buffer(10000)
library.equipot_compile_for_gpu.restype = ctypes.c_int64
print(library.equipot_compile_for_gpu(b"", 8, 0, log, ctypes.c_size_t(10000)), log.value.decode())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("-1 ")
    assert "libnvrtc.so" in run.stdout and "EQUIPOT_KERNELS=off" in run.stdout
