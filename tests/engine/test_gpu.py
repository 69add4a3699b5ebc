"""The engine on an emulated GPU gives what it gives on a CPU, and asks for little; see emulated.py."""

import ctypes
import os
import pickle
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk
from emulated import ALLEGRO, L_MAX_3, NEQUIP, TOLERANCE, Crystal, Gpu, assert_same, crystal, model

from equipot.compile import compiler_command
from equipot.config import AllegroConfig, AllegroDenseConfig, NequIPConfig, config_from_dict
from equipot.deploy import engines, load
from equipot.engine.library import GPU_SKIN, Engine, _Results, _Structure, load_library
from equipot.errors import DataError, DeviceError, ModelFileError, SimulationError
from equipot.integrations.ase import EquipotCalculator

HERE = Path(__file__).parent
PAIR_CUTOFFS = {"H-H": 2.1, "H-O": 2.6, "O-H": 2.9, "C-H": 2.8}
BENCHMARK = {"type": "nequip", "cutoff": 5.0, "l_max": 2, "parity": True, "channels": 64, "layers": 4}
LOCAL = {"type": "allegro", "cutoff": 5.0, "l_max": 2, "channels": 32, "scalar_channels": 64, "layers": 2}

CONFIGS = {
    "nequip 33 channels": NequIPConfig(**NEQUIP | {"layers": 2}, channels=33, l_max=1),
    "nequip no parity, zbl": NequIPConfig(**NEQUIP, channels=5, l_max=2, parity=False, zbl=True),
    "nequip l_max 3": L_MAX_3,
    "nequip six layers, odd scalars": NequIPConfig(**NEQUIP | {"layers": 6}, channels=2, l_max=1),
    "nequip radial network, solid": NequIPConfig(
        **NEQUIP | {"layers": 2}, channels=4, l_max=1, xplor_start=2.6, radial_intervals=None,
        normalize_harmonics=False,
    ),
    "as sevennet's": NequIPConfig(
        **NEQUIP | {"layers": 2}, channels=4, l_max=1, parity="ignored", self_connection="shared",
        xplor_start=2.5, biases=True, readout_hidden=(6, 5), embedding_channels=6,
    ),
    "as nequip's, pair cutoffs": NequIPConfig(
        **NEQUIP | {"layers": 2}, channels=4, l_max=1, first_self_connection=False, element_factors=True,
        pair_cutoffs=PAIR_CUTOFFS, zbl="cutoff",
    ),
    "allegro": AllegroConfig(**ALLEGRO, l_max=2),
    "allegro 33 channels, zbl": AllegroConfig(
        **ALLEGRO | {"channels": 33}, l_max=1, parity=False, zbl=True, pair_cutoffs=PAIR_CUTOFFS
    ),
    "allegro dense": AllegroDenseConfig(
        **ALLEGRO | {"type": "allegro_dense", "two_body_hidden": ()}, l_max=1, pair_channels=7
    ),
}  # fmt: skip


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_gpu_gives_what_a_cpu_gives(gpu, config, tmp_path):
    """Where some energies do not count, too; edges in any order; the same bits every time."""
    path = model(config, tmp_path)
    cpu, on_gpu = Engine(path), Engine(path, device="cuda")
    given = crystal()
    vec, index = given.edges()
    right = cpu.evaluate_edges(vec, index, given.types)
    assert np.abs(right.forces).max() > 1e-3  # there is something to compare
    found = on_gpu.evaluate_edges(vec, index, given.types)
    assert_same(found, right)
    used = gpu.of(lambda: assert_same(on_gpu.evaluate_edges(vec, index, given.types), found, 0))
    assert used.waits == 1 and used.allocations == 0
    owned = np.arange(30) % 3 > 0
    owned[20:] = False
    order = np.random.default_rng(0).permutation(len(vec))
    right = cpu.evaluate_edges(vec, index, given.types, owned)
    assert_same(on_gpu.evaluate_edges(vec[order], index[:, order], given.types, owned), right)


@pytest.fixture
def edges_at_once():
    """Of a strictly local model on a GPU."""
    yield load_library().equipot_set_gpu_edges_at_once
    load_library().equipot_set_gpu_edges_at_once(0)


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("allegro")])
def test_parts_of_the_atoms_give_what_all_give(gpu, name, edges_at_once, tmp_path):
    """The same bits: also where one atom has more edges, and where the last atoms are not owned."""
    engine, given = Engine(model(CONFIGS[name], tmp_path), device="cuda"), crystal()
    vec, index = given.edges()
    for owned in (None, np.arange(30) < 17):
        evaluate = partial(engine.evaluate_edges, vec, index, given.types, owned)
        edges_at_once(0)
        whole, launches = evaluate(), gpu.of(evaluate).launches
        for edges in (100, 1):
            edges_at_once(edges)
            assert_same(evaluate(), whole, 0)
            assert gpu.of(evaluate).launches > 2 * launches
    edges_at_once(100)
    right = Engine(model(CONFIGS[name], tmp_path)).evaluate(
        given.positions, given.cell, (1, 1, 1), given.types
    )
    assert_same(engine.evaluate(given.positions, given.cell, (1, 1, 1), given.types), right)


def totals(engine: Engine, given: Crystal, pbc=(1, 1, 1)):
    """(energy, forces, virial) from positions, asking for nothing else."""
    structure = _Structure(
        len(given.types), *(a.ctypes.data for a in (given.types, given.positions, given.cell)),
        (ctypes.c_int32 * 3)(*pbc), None,
    )  # fmt: skip
    energy, forces, virial = np.empty(1), np.empty((len(given.types), 3)), np.empty((3, 3))
    results = _Results(energy.ctypes.data, None, forces.ctypes.data, virial.ctypes.data)
    engine._call("equipot_evaluate", engine._model, ctypes.byref(structure), ctypes.byref(results))
    return energy[0], forces, virial


@pytest.mark.parametrize("name", ["nequip no parity, zbl", "as sevennet's", "allegro"])
@pytest.mark.parametrize("scale", [1.0, 0.6])  # also cells thinner than the cutoff, with images of one atom
def test_from_positions(gpu, name, scale, tmp_path):
    """Neighbors are found on the device, with a skin: edges beyond the cutoff add nothing."""
    path = model(CONFIGS[name], tmp_path)
    cpu, on_gpu = Engine(path), Engine(path, device="cuda")
    given = crystal(30 if scale == 1 else 5)
    given = given._replace(cell=given.cell * scale)
    outside = np.random.default_rng(1).integers(-2, 3, (len(given.types), 3))
    for pbc in ((1, 1, 1), (1, 0, 1), (0, 0, 0)):
        moved = given._replace(positions=given.positions + (outside * pbc) @ given.cell)
        right = cpu.evaluate(moved.positions, moved.cell, pbc, moved.types)
        assert_same(on_gpu.evaluate(moved.positions, moved.cell, pbc, moved.types), right)
        energy, forces, virial = totals(on_gpu, moved, pbc)
        assert energy == pytest.approx(right.atom_energies.sum(), rel=TOLERANCE)
        assert_close(forces, right.forces)
        assert_close(virial, right.atom_virials.sum(axis=0))


def assert_close(found, right):
    np.testing.assert_allclose(found, right, rtol=0, atol=TOLERANCE * max(np.abs(right).max(), 1e-3))


def test_steps_send_positions_and_fetch_forces(gpu, tmp_path):
    """A list stays while atoms move little, and the cell is strained a little; otherwise it is made anew."""
    path = model(NequIPConfig(**NEQUIP | {"layers": 4}, channels=4, l_max=2), tmp_path)
    cpu, on_gpu = Engine(path), Engine(path, device="cuda")
    given, rng = crystal(30), np.random.default_rng(2)
    totals(on_gpu, given)
    strain = np.eye(3) + 0.01 * rng.uniform(-1, 1, (3, 3))
    near = given._replace(positions=given.positions + rng.uniform(-0.1, 0.1, given.positions.shape))
    strained = given._replace(positions=near.positions @ strain, cell=given.cell @ strain)
    far = given._replace(positions=given.positions + rng.uniform(-0.3, 0.3, given.positions.shape))
    for step, waits in ((near, 1), (strained, 1), (far, 2)):
        used = gpu.of(lambda step=step: totals(on_gpu, step))
        energy, forces, virial = totals(on_gpu, step)
        right = cpu.evaluate(step.positions, step.cell, (1, 1, 1), step.types)
        assert energy == pytest.approx(right.atom_energies.sum(), rel=TOLERANCE)
        assert_close(forces, right.forces)
        assert_close(virial, right.atom_virials.sum(axis=0))
        assert used.waits == waits
        if waits == 1:
            assert used.launches <= 60 and used.allocations == 0
            assert used.bytes_up + used.bytes_down <= 60 * len(given.types)


@pytest.mark.parametrize("name", ["nequip l_max 3", "allegro"])
def test_memory_is_planned_once_and_bounded(gpu, name, tmp_path):
    """Where it is short at first, what is not in use goes back; afterwards one block is enough."""
    path = model(CONFIGS[name], tmp_path)
    given, other = crystal(30), crystal(12, seed=1)
    engine = Engine(path, device="cuda")
    weights = gpu.most_memory(lambda: None)
    plenty = gpu.most_memory(lambda: totals(engine, given)) - weights
    planned = gpu.most_memory(lambda: totals(engine, given)) - weights
    assert planned < plenty
    right = totals(engine, given)
    totals(engine, other)
    again = gpu.of(lambda: totals(engine, given))
    assert again.allocations <= 12  # the neighbor list's arrays

    tight = Engine(path, device="cuda")
    in_use = gpu.most_memory(lambda: None)
    for _ in range(3):
        assert gpu.most_memory(lambda: totals(tight, given), in_use + planned) <= in_use + planned
    for found, expected in zip(totals(tight, given), right, strict=True):
        np.testing.assert_array_equal(found, expected)
    large = crystal(64)
    with pytest.raises(SimulationError, match=r"(?i)not enough memory on emulated GPU: an array of \d+ MB"):
        gpu.most_memory(lambda: totals(tight, large), in_use + planned)
    totals(tight, large)
    for found, expected in zip(totals(tight, given), right, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_models_on_one_gpu_take_turns_with_its_memory(gpu, tmp_path):
    """What one keeps for its next evaluation is another's when memory is short."""
    path, given = model(CONFIGS["nequip l_max 3"], tmp_path), crystal(30)
    first, second = Engine(path, device="cuda"), Engine(path, device="cuda")
    weights = gpu.most_memory(lambda: None)
    totals(first, given)
    right = totals(first, given)
    of_one = gpu.most_memory(lambda: totals(first, given)) - weights
    found, room = [], weights + int(1.5 * of_one)
    for engine in (second, first, second, first):
        assert gpu.most_memory(partial(lambda one: found.append(totals(one, given)), engine), room) <= room
    for results in found:
        for one, expected in zip(results, right, strict=True):
            np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize(
    ("config", "edges", "least", "most"),
    [(NequIPConfig(**BENCHMARK), 0, 20e3, 80e3), (AllegroConfig(**LOCAL), 100, 4e3, 10e3)],
    ids=["nequip", "allegro"],
)
def test_a_million_atoms_fit_into_80_gb(emulator, config, edges, least, most, edges_at_once, tmp_path):
    """The benchmarks' models on silicon, by what a thousand take; edges are those of a list with its skin."""
    species, num_atoms = ["Si"], 1000
    atoms = bulk("Si", cubic=True) * (5, 5, 5)
    given = Crystal(atoms.positions, atoms.cell.array, np.zeros(num_atoms, dtype=np.int64))
    with Gpu(emulator, tmp_path, run=False) as gpu:
        engine = Engine(model(config, tmp_path, species), device="cuda")
        vec, index = given.edges(config.cutoff + GPU_SKIN)
        edges_at_once(edges)

        def evaluate():
            with pytest.raises(SimulationError, match="not finite"):  # as nothing is computed
                engine.evaluate_edges(vec, index, given.types)

        weights = gpu.most_memory(lambda: None)
        for _ in range(2):
            used = gpu.most_memory(evaluate) - weights
        print(f"{used / num_atoms / 1e3:.1f} kB an atom, {len(vec) / num_atoms:.0f} edges each")
        edges_at_once(0)
        assert gpu.of(evaluate).launches <= 58  # from positions, with their energy, it is two more
        assert least < used / num_atoms < most
        if edges:  # what is taken beside that, by the edges of one part
            each = (gpu.most_memory(evaluate) - weights - used) / (len(vec) - edges)
            print(f"{each / 1e3:.1f} kB an edge of those evaluated together")
            assert each * 2**19 < 5e9


SILICON = Path(__file__).parents[2] / "examples" / "04_engine" / "silicon.pt"


@pytest.fixture
def here(gpu, monkeypatch):
    """This machine seems to have a driver; torch is not asked."""
    monkeypatch.delenv("EQUIPOT_KERNELS", raising=False)
    monkeypatch.setattr(engines, "may_have_gpu", lambda: True)
    monkeypatch.setattr(load, "resolve_device", {"cpu": "cpu"}.get)
    return gpu


def test_a_gpu_that_fails_is_not_taken_for_a_damaged_file(here):
    """And torch does not go on where nothing works any more."""
    before = here.most_memory(lambda: None)
    opened = []
    used = here.most_memory(lambda: opened.append(Engine(SILICON, device="cuda"))) - before
    in_use = here.most_memory(lambda: None)
    with pytest.raises(SimulationError, match=r"(?i)not enough memory"):
        here.most_memory(opened[0].check, in_use + 10_000)
    with pytest.raises(DeviceError, match=r"(?i)cannot evaluate .*silicon\.pt on .* cuda: not enough memory"):
        here.most_memory(lambda: EquipotCalculator(SILICON, device="auto"), in_use + used + 10_000)
    assert "reference structures" in opened[0].check()


def test_a_deployed_file_from_ase(here):
    """Its reference structures, and the calculator: positions go up, and a list stays for small steps."""
    assert "reference structures" in Engine(SILICON, device="cuda").check()
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    expected, calculator = (EquipotCalculator(SILICON, device=device) for device in ("cpu", "auto"))
    assert calculator.model.runs_by == "cuda, engine"
    waits = []
    for step, size in enumerate((0.0, 0.02, 0.02, 0.5)):  # Å
        atoms.rattle(size, seed=step)
        atoms.set_cell(atoms.cell.array * 1.001, scale_atoms=True)
        waits.append(here.of(lambda: calculator.calculate(atoms)).waits)
        expected.calculate(atoms)
        for name in ("energy", "energies", "forces", "stress", "stresses"):
            found, right = calculator.results[name], expected.results[name]
            np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5, err_msg=name)
    assert waits == [2, 1, 1, 2] and calculator.neighbors.builds == 2


def test_a_restored_list_is_the_one_that_was(here):
    """Bit for bit, as a resumed molecular dynamics needs it; of a pickled calculator, too."""
    atoms = bulk("Si", cubic=True) * (1, 1, 2)
    atoms.rattle(0.1, seed=0)
    first = EquipotCalculator(SILICON, device="cuda")
    first.calculate(atoms)
    atoms.rattle(0.05, seed=1)
    first.calculate(atoms)
    restored = EquipotCalculator(SILICON, device="cuda")
    restored.neighbors.restore(first.neighbors.geometry)
    others = [restored, pickle.loads(pickle.dumps(first))]
    for other in others:
        other.reset()
        other.calculate(atoms)
        np.testing.assert_array_equal(other.results["forces"], first.results["forces"])
        assert other.results["energy"] == first.results["energy"]


def test_atoms_that_are_close_are_named_from_ase(here, caplog):
    atoms = bulk("Si", cubic=True) * (2, 1, 1)
    calculator = EquipotCalculator(SILICON, device="cuda")
    calculator.distances.shortest = {"Si-Si": 2.3}
    calculator.distances._warn[:] = 2.3
    calculator.calculate(atoms)
    assert "Closer" not in caplog.text
    atoms.positions[9] += 0.1 * (atoms.positions[8] - atoms.positions[9])
    for _ in range(2):
        calculator.calculate(atoms)
    assert caplog.text.count("atoms 8 and 9 (Si-Si) are 2.116 Å apart") == 1
    atoms.positions[9] = atoms.positions[8] + 0.03
    with pytest.raises(DataError, match=r"Atoms [89] and [89] are 0\.0520 Å apart"):
        calculator.calculate(atoms)


def test_a_calculator_that_wakes_up_without_its_engine(here, monkeypatch):
    """On another machine, or where the GPU is full."""
    atoms = bulk("Si", cubic=True)
    atoms.rattle(0.1, seed=0)
    calculator = EquipotCalculator(SILICON, device="cuda")
    calculator.calculate(atoms)
    frozen = pickle.dumps(calculator)
    monkeypatch.setattr(engines, "num_gpus", lambda: 0)
    monkeypatch.setattr(load, "resolve_device", lambda device: "cpu")
    woken = pickle.loads(frozen)
    assert woken.model.runs_by.startswith("cpu, engine")
    woken.reset()
    woken.calculate(atoms)
    forces = woken.results["forces"]
    np.testing.assert_allclose(forces, calculator.results["forces"], rtol=1e-5, atol=1e-5)


def test_which_gpu_the_engine_has(here, monkeypatch, caplog):
    found = [engines.engine_gpu(name) for name in ("auto", "cuda", "cuda:0", "cpu", "mps")]
    assert found == ["cuda", "cuda", "cuda:0", None, None]
    with pytest.raises(DeviceError, match="'cuda:1' does not exist: there are 1 GPUs"):
        EquipotCalculator(SILICON, device="cuda:1")
    monkeypatch.setattr(engines, "num_gpus", lambda: 0)
    monkeypatch.setattr(engines, "why_no_gpu", lambda: "the driver finds no GPU")
    monkeypatch.setattr(engines, "nvidia_driver", lambda: ["/dev/nvidia0"])
    assert engines.engine_gpu("auto") is None
    assert "which equipot's engine cannot use: the driver finds no GPU." in caplog.text


def test_an_engine_that_is_wrong_on_a_gpu_is_not_taken(gpu, monkeypatch, caplog):
    """The check of its reference structures fails; on a CPU it is not asked for."""
    file, content = SILICON, SILICON.read_bytes()
    assert engines._opened(file, content, "cuda") is not None
    right = Engine._call

    def wrong(self, function, *arguments):
        if function == "equipot_check":
            raise ModelFileError("the model does not reproduce its reference structures here")
        return right(self, function, *arguments)

    monkeypatch.setattr(Engine, "_call", wrong)
    assert engines._opened(file, content, "cuda") is None
    assert engines._opened(file, content, "cpu") is not None
    assert "wrong on this GPU and does not run" in caplog.text and "does not reproduce" in caplog.text


def test_atoms_that_coincide_are_refused(gpu, tmp_path):
    """In a new list, and when they come close in one that is there."""
    on_gpu = Engine(model(CONFIGS["allegro"], tmp_path), device="cuda")
    given = crystal(8)
    totals(on_gpu, given)
    for position in (given.positions[0] + 0.01, np.full(3, np.nan)):
        broken = given.positions.copy()
        broken[3] = position
        with pytest.raises(DataError, match=r"apart; expected at least 0\.1|not finite"):
            totals(on_gpu, given._replace(positions=broken))
    pair = given._replace(positions=np.array([[0.0, 0.0, 0.0], [0.35, 0.0, 0.0]]), types=given.types[:2])
    totals(on_gpu, pair)
    closer = np.array([[0.15, 0.0, 0.0], [0.2, 0.0, 0.0]])
    with pytest.raises(DataError, match=r"apart; expected at least 0\.1"):
        totals(on_gpu, pair._replace(positions=closer))


def test_no_atoms_and_no_edges(gpu, tmp_path):
    path = model(CONFIGS["nequip no parity, zbl"], tmp_path)
    cpu, on_gpu = Engine(path), Engine(path, device="cuda")
    for given in (crystal(1), crystal(0)):
        cell = 50.0 * np.eye(3)
        right = cpu.evaluate(given.positions, cell, (0, 0, 0), given.types)
        found = on_gpu.evaluate(given.positions, cell, (0, 0, 0), given.types)
        np.testing.assert_array_equal(found.atom_energies, right.atom_energies)
        assert not found.forces.any()


def test_what_is_refused_says_what_to_do(gpu, tmp_path):
    path = model(CONFIGS["nequip no parity, zbl"], tmp_path)
    with pytest.raises(DeviceError, match="'cud' is not known, expected cpu, cuda or cuda:NUMBER"):
        Engine(path, device="cud")
    on_gpu, given = Engine(path, device="cuda:0"), crystal(4)
    with pytest.raises(DataError, match="on a CPU only: use the device cpu"):
        on_gpu.evaluate(given.positions, given.cell, (1, 1, 1), given.types, heat=True)
    with pytest.raises(DataError, match=r"type [345], the model knows types 0 to 2"):
        on_gpu.evaluate(given.positions, given.cell, (1, 1, 1), given.types + 3)
    vec, index = given.edges()
    for row in (0, 1):
        beyond = index.copy()
        beyond[row, -1] = 10**9
        with pytest.raises(DataError, match="1000000000"):
            on_gpu.evaluate_edges(vec, beyond, given.types)
    dipole = {"dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"}}
    network = {**NEQUIP, "radial_hidden": [8], "channels": 4, "l_max": 1, "outputs": dipole}
    config = config_from_dict({"data": {"train": "x.xyz"}, "model": network}).model
    with pytest.raises(DeviceError, match=r"model\.outputs.*use the device cpu"):
        Engine(model(config, tmp_path), device="cuda")


COMPILERS = {"libnvrtc.so.13": (13, 1, "75,80,87,90,100,110"), "libnvrtc.so.12": (12, 8, "70,80,87,90")}


def stubs(folder, names=tuple(COMPILERS)):
    """The driver, which is of the version in the environment, and NVIDIA's compilers, in ``folder``."""
    command = [*compiler_command(), "-x", "c", "-shared", "-fPIC", "-w", str(HERE / "cuda_stubs.c")]
    subprocess.run([*command, "-DDRIVER", "-o", folder / "libcuda.so.1"], check=True)
    for name in names:
        major, minor, known = COMPILERS[name]
        facts = [f"-DMAJOR={major}", f"-DMINOR={minor}", f"-DKNOWN={known}"]
        subprocess.run([*command, *facts, "-o", folder / name], check=True)


def with_stubs(code, folder, driver):
    """What ``code`` prints in a process that finds only those libraries of CUDA."""
    loading = "import ctypes, os\nfrom equipot.engine.library import load_library\nlibrary = load_library()\n"
    environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "DRIVER_VERSION": str(driver)}
    command = [sys.executable, "-c", loading + code]
    return subprocess.run(command, capture_output=True, text=True, env=environment).stdout


@pytest.mark.parametrize(
    "driver, capability, expected",
    [
        (13000, (9, 0), "5 13.1 --gpu-architecture=sm_90"),
        (12040, (9, 0), "5 12.8 --gpu-architecture=sm_90"),  # a driver does not load what newer majors make
        (13000, (7, 0), "5 12.8 --gpu-architecture=sm_70"),  # the newest knows it no more
        (13000, (8, 9), "5 13.1 --gpu-architecture=sm_80"),  # not that of an embedded processor, 8.7
        (13010, (12, 0), "3 13.1 --gpu-architecture=compute_100"),
        (13000, (12, 0), "3 12.8 --gpu-architecture=compute_90"),  # nor does it translate newer minors' PTX
        (12040, (3, 5), "-1 equipot: NVRTC 13.1, 12.8 does not compile for GPUs of compute capability 3.5"),
    ],
)
def test_the_compiler_suits_driver_and_device(tmp_path, driver, capability, expected):
    stubs(tmp_path)
    code = f"""
library.equipot_compile_for_gpu.restype = ctypes.c_int64
log = ctypes.create_string_buffer(10000)
size = library.equipot_compile_for_gpu(b"text", *{capability}, log, ctypes.c_size_t(10000))
print(size, log.value.decode())"""
    assert with_stubs(code, tmp_path, driver).startswith(expected)


COUNT = "print(library.equipot_num_gpus(), library.equipot_message().decode(), flush=True)"


def test_a_compiler_newer_than_the_driver_is_said(tmp_path):
    stubs(tmp_path, ["libnvrtc.so.13"])
    said = with_stubs(COUNT, tmp_path, 12040)
    assert said.startswith("0 equipot: NVRTC 13.1 is newer than the driver, which is of CUDA 12.4")
    assert "nvidia-cuda-nvrtc-cu12" in said


def test_a_forked_process_is_told_why_it_has_no_gpu(tmp_path):
    stubs(tmp_path)
    code = f"{COUNT}\nif os.fork() == 0:\n    {COUNT}\n    os._exit(0)\nos.wait()"
    parent, child = with_stubs(code, tmp_path, 13010).splitlines()
    assert parent.startswith("1 ")
    assert child.startswith("0 equipot: this process was forked") and "by spawn" in child


def test_a_missing_driver_is_said(tmp_path):
    path = model(CONFIGS["allegro"], tmp_path)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        with pytest.raises(DeviceError, match=r"libcuda\.so\.1.*install the driver, or use the device cpu"):
            Engine(path, device="cuda")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_nvidias_compiler_accepts_the_kernels(emulator, dtype, capability, tmp_path):
    """Of models of the usual width; none may keep what it works on in memory (spill)."""
    usual = {"channels": 64, "l_max": 2}
    with Gpu(emulator, tmp_path, run=False) as recorder:
        for config in (
            NequIPConfig(**NEQUIP | {"dtype": dtype, "layers": 2}, **usual, zbl=True),
            AllegroConfig(**ALLEGRO | {"dtype": dtype}, l_max=2),
        ):
            Engine(model(config, tmp_path), device="cuda")
    library = load_library()
    library.equipot_compile_for_gpu.restype = ctypes.c_int64
    log = ctypes.create_string_buffer(1 << 20)
    texts = [file.read_text() for file in recorder.folder.glob("*.cu")]
    ours = [text for text in texts if re.search("linear_rows|edge_forward|count_neighbors", text)]
    assert len(ours) == 4  # rows and neighbors once, edges of each model
    for text in ours:
        size = library.equipot_compile_for_gpu(text.encode(), *capability, log, ctypes.c_size_t(len(log)))
        said = log.value.decode()
        if "was not found" in said:
            pytest.skip(said.splitlines()[0])
        assert size > 0, said
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill stores", said)]
        assert spills and max(spills) <= 16, said  # which the compiler prefers to, to let more warps run
