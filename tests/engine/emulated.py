"""The engine on a GPU without a GPU: an emulated device (tests/ops/gpu) runs the kernels' text on the CPU.

It counts launches, bytes each way and waits, fills new memory with numbers that are none, hands results over
only when the host waits, and refuses memory of the host that a real device could not copy.
"""

import ctypes
import shlex
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from equipot.compile import compiler_command
from equipot.config import NequIPConfig
from equipot.data.neighbors import neighbor_list
from equipot.engine.library import load_library
from equipot.models.build import build_potential

HERE = Path(__file__).parents[1] / "ops" / "gpu"
SPECIES, CUTOFF = ["H", "C", "O"], 3.0
TOLERANCE = 1e-12  # sums of up to some thousand terms in another order
NEQUIP = {"type": "nequip", "dtype": "float64", "cutoff": CUTOFF, "layers": 3, "radial_hidden": (8,)}
ALLEGRO = {
    "type": "allegro", "dtype": "float64", "cutoff": CUTOFF, "layers": 2, "scalar_channels": 8, "channels": 5,
    "two_body_hidden": (8,), "latent_hidden": (8,), "readout_hidden": (8,),
}  # fmt: skip
L_MAX_3 = NequIPConfig(**NEQUIP, channels=(3, 2, 1, 2), l_max=3)


class Counts(NamedTuple):
    launches: int
    bytes_up: int
    bytes_down: int
    waits: int
    allocations: int
    zeroed: int
    beside: int  # launches while there were copies aside


class Gpu:
    """An emulated device. Without ``run`` the kernels' text is only kept, and results are arbitrary."""

    def __init__(self, library: Path, folder: Path, run: bool = True):
        self.folder, self.library, self.engine = folder, ctypes.CDLL(str(library)), load_library()
        command = shlex.join([*compiler(), "-std=c++17", f"-I{library.parent}", f"-I{HERE}"]) if run else ""
        self.library.emulator.restype = ctypes.c_void_p
        self.library.set_memory.restype = ctypes.c_int64
        self.device = ctypes.c_void_p(self.library.emulator(str(folder).encode(), command.encode()))

    def __enter__(self):
        self.engine.equipot_set_gpu_device(self.device)
        return self

    def __exit__(self, *exception):
        self.engine.equipot_set_gpu_device(None)

    def counts(self) -> Counts:
        found = (ctypes.c_int64 * 7)()
        self.library.counts(self.device, found)
        return Counts(*found)

    def most_memory(self, evaluate, room: int = 2**62) -> int:
        """Bytes on the device during ``evaluate``, at most, of ``room``."""
        self.library.set_memory(self.device, ctypes.c_int64(room))
        try:
            evaluate()
        finally:
            most = self.library.set_memory(self.device, ctypes.c_int64(2**62))
        return most

    def of(self, evaluate) -> Counts:
        """What an evaluation asks of the device."""
        before = self.counts()
        evaluate()
        return Counts(*(b - a for a, b in zip(before, self.counts(), strict=True)))


def compiler() -> list[str]:
    return [*compiler_command(), "-shared", "-fPIC", "-O1", "-w", "-fno-strict-aliasing"]


def model(config, folder, species=SPECIES) -> Path:
    """A file with the program of an untrained model."""
    torch.manual_seed(7)
    shifts = [-13.6, -1030.0, -2040.0][: len(species)]
    potential = build_potential(config, species, 6.0, shifts, 1.3).eval()
    for key, weight in potential.named_parameters():
        if key.endswith((".bias", ".factors")):  # which are zero or one at first
            torch.nn.init.normal_(weight)
    if config.type == "nequip" and config.radial_intervals is not None:
        potential.network.tabulate(64)
    path = folder / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/format_version", "1")
        for name, content in potential.program().files().items():
            archive.writestr(f"model/{name}", content)
    return path


class Crystal(NamedTuple):
    positions: np.ndarray
    cell: np.ndarray
    types: np.ndarray

    def edges(self, cutoff=CUTOFF):
        """(edge_vec, edge_index)"""
        index, shift = neighbor_list(self.positions, self.cell, np.ones(3, dtype=bool), cutoff)
        return self.positions[index[1]] - self.positions[index[0]] + shift @ self.cell, index


def crystal(num_atoms=30, num_types=3, seed=0) -> Crystal:
    """Atoms that keep their distance, in a skew cell."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)[:num_atoms] * 1.7
    cell = np.array([[7.0, 0.0, 0.0], [1.1, 7.0, 0.0], [-0.9, 0.8, 7.0]])
    return Crystal(grid + rng.uniform(-0.3, 0.3, grid.shape), cell, rng.integers(0, num_types, num_atoms))


def assert_same(found, right, tolerance=TOLERANCE):
    for name in ("atom_energies", "forces", "atom_virials"):
        a, b = getattr(found, name), getattr(right, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3), err_msg=name)
