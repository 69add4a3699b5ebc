"""What NVIDIA's compiler makes of the GPU kernels, counted without a GPU: registers, instructions per edge.

    scripts/benchmark gpu-code [--models l2p l2n l3p] [--capabilities 8.0 9.0] [--instructions]

An evaluation of energy and forces is asked for, but nothing runs: the kernels' text and how each would be
started are kept. NVRTC compiles the text, nvdisasm takes the result apart; needed are the packages
nvidia-cuda-nvrtc and nvidia-cuda-nvdisasm. Where warps do different work (one group of paths each), the loop
over edges of each group is counted. One number sums a model up: the instructions that warps start for an
edge, in all passes of all layers. It says nothing of memory, nor of time.
"""

import argparse
import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMON = {"type": "nequip", "cutoff": 5.0, "layers": 4}
MODELS = {
    "l2p": {"l_max": 2, "parity": True, "channels": 64},
    "l2n": {"l_max": 2, "parity": False, "channels": 64},
    "l3p": {"l_max": 3, "parity": True, "channels": (128, 64, 32, 32)},
}
REGISTERS, WARPS, BLOCKS = 65536, 64, 32  # of a multiprocessor of capability 8.0 or 9.0


# ---- kernels of an evaluation ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    source: str
    warps: int  # for each edge

    @property
    def name(self) -> str:
        found = re.search(r"^// (.*)", self.source, re.MULTILINE)
        return found[1] if found else "?"


def launches(name: str, recorder: Path, folder: Path) -> list[Launch]:
    """All kernels with a loop over edges that an evaluation starts, in their order."""
    import torch
    from ase.build import bulk

    from equipot.config import NequIPConfig
    from equipot.data import graph_from_atoms
    from equipot.graph import edge_vectors
    from equipot.models.build import build_potential
    from equipot.ops import build

    config = NequIPConfig(**COMMON, **MODELS[name])
    crystal = graph_from_atoms(bulk("Si"), ["Si"], config.cutoff)
    potential = build_potential(config, ["Si"], 28.0, [0.0], 1.0).eval().requires_grad_(False)
    owned = torch.ones_like(crystal.atom_types, dtype=torch.bool)
    vectors = edge_vectors(crystal).to(torch.float32)
    # Once on the CPU: what is made only once is there.
    potential(vectors, crystal.edge_index, crystal.atom_types, owned)

    folder.mkdir()
    emulator = ctypes.CDLL(str(recorder)).emulator
    emulator.argtypes, emulator.restype = [ctypes.c_char_p] * 2, ctypes.c_void_p
    equipot = ctypes.CDLL(str(build.build()))
    equipot.equipot_set_gpu_launcher.argtypes = [ctypes.c_void_p]
    equipot.equipot_set_gpu_launcher(emulator(str(folder).encode(), b""))
    potential(vectors, crystal.edge_index, crystal.atom_types, owned)
    equipot.equipot_set_gpu_launcher(None)

    found = []
    for line in (folder / "launches.txt").read_text().splitlines():
        stem, _, blocks_y, _, threads = line.split()  # along x are atoms, along z parts of their edges
        source = (folder / f"{stem}.cu").read_text()
        if re.search(r"^// (center|neighbor|table) pass", source, re.MULTILINE):
            found.append(Launch(source, int(blocks_y) * int(threads) // 32))
    return found


def compile_recorder(folder: Path) -> Path:
    """tests/ops/gpu/emulator.cpp, which stands in for the driver."""
    from equipot.compile import compiler_command
    from equipot.ops import build

    library = folder / "recorder.so"
    folders = [f"-I{build.GPU}", f"-I{build.KERNELS}"]
    source = ROOT / "tests" / "ops" / "gpu" / "emulator.cpp"
    command = [
        *compiler_command(),
        "-std=gnu++20",
        "-shared",
        "-fPIC",
        "-O1",
        *folders,
        source,
        "-ldl",
        "-o",
        library,
    ]
    subprocess.run(command, check=True)
    return library


# ---- what the compiler makes of them -----------------------------------------------------------------------


def nvidia_file(pattern: str) -> Path | None:
    """A file of NVIDIA's packages."""
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else []
    return next((file for folder in folders for file in sorted(Path(folder).glob(pattern))), None)


class Compiler:
    def __init__(self):
        library, disassembler = nvidia_file("*/lib/libnvrtc.so.*"), nvidia_file("*/bin/nvdisasm")
        disassembler = disassembler or shutil.which("nvdisasm")
        if library is None or disassembler is None:
            sys.exit("needed: pip install nvidia-cuda-nvrtc nvidia-cuda-nvdisasm")
        for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
            ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        self.nvrtc, self.disassembler = ctypes.CDLL(str(library)), disassembler

    def compile(self, source: str, capability: str) -> tuple[bytes, str]:
        """Machine code and messages, as gpu_nvrtc.cpp asks for them."""
        options = [
            f"--gpu-architecture=sm_{capability.replace('.', '')}",
            "--std=c++17",
            "--ptxas-options=-v",
        ]
        program = ctypes.c_void_p()
        self.nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"equipot.cu", 0, None, None)
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.nvrtc.nvrtcCompileProgram(program, len(options), arguments)
        log = self._read("ProgramLog", program).decode().rstrip("\0")
        if failed:
            sys.exit(f"NVRTC: {log}")
        return self._read("CUBIN", program), log

    def _read(self, what: str, program) -> bytes:
        size = ctypes.c_size_t()
        getattr(self.nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(self.nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def loop(self, source: str, capability: str) -> Counter:
        """Names of the instructions in the longest loop: that over edges, which has no loop inside."""
        binary, _ = self.compile(source, capability)
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            run = subprocess.run(
                [self.disassembler, "-c", file.name], capture_output=True, text=True, check=True
            )
        return longest_loop(run.stdout)


def longest_loop(assembly: str) -> Counter:
    instructions, labels, best = [], {}, (0, 0)
    for line in assembly.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", line):
            target = re.search(r"\.L_x_\d+", found[2])
            instructions.append(found[1])
            if found[1].startswith("BRA") and target and target[0] in labels:
                best = max(best, (len(instructions) - labels[target[0]], labels[target[0]]))
    return Counter(name.split(".")[0] for name in instructions[best[1] : sum(best)])


def groups(launch: Launch) -> list[tuple[str, int]]:
    """(the text with this group of paths alone, warps that run it for each atom)"""
    calls = re.findall(r"^  if \(blockIdx\.y < (\d+)\) return (group_\d+)\(.*\n", launch.source, re.MULTILINE)
    if not calls:
        return [(launch.source, launch.warps)]
    warps_per_block, found, before = launch.warps // int(calls[-1][0]), [], 0
    for end, name in calls:
        alone = re.sub(
            rf"^  if \(blockIdx\.y < \d+\) return (?!{name}\()group_\d+\(.*\n", "", launch.source, flags=re.M
        )
        found.append((alone, (int(end) - before) * warps_per_block))
        before = int(end)
    return found


@dataclass(frozen=True)
class Count:
    name: str
    registers: int
    spilt: int  # bytes
    warps_per_multiprocessor: int  # as registers allow, and blocks as narrow as ours
    loops: list[int]  # instructions in the loop over edges of each group
    warps: list[int]  # that run it
    instructions: Counter  # of all these warps, by name


def count(launch: Launch, capability: str, compiler: Compiler) -> Count:
    _, log = compiler.compile(launch.source, capability)
    registers = int(re.search(r"Used (\d+) registers", log)[1])
    spilt = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    threads = int(re.search(r"__launch_bounds__\((\d+)", launch.source)[1])
    resident = min(REGISTERS // (-(-registers // 8) * 8 * 32), WARPS, BLOCKS * threads // 32)
    loops, warps, instructions = [], [], Counter()
    for text, running in groups(launch):
        loop = compiler.loop(text, capability)
        loops.append(loop.total())
        warps.append(running)
        instructions.update({name: number * running for name, number in loop.items()})
    return Count(launch.name, registers, spilt, resident, loops, warps, instructions)


# ---- report ------------------------------------------------------------------------------------------------


def report(model: str, capability: str, counts: list[Count], with_instructions: bool) -> None:
    print(f"\n{model}, capability {capability}\n")
    print("| kernel | registers | bytes spilt | warps | instructions in the loop x warps | per edge |")
    print("| --- | --- | --- | --- | --- | --- |")
    total = Counter()
    for c in counts:
        loops = " + ".join(f"{loop} x {warps}" for loop, warps in zip(c.loops, c.warps, strict=True))
        numbers = (
            f"{c.registers} | {c.spilt} | {c.warps_per_multiprocessor} | {loops} | {c.instructions.total()}"
        )
        print(f"| {c.name} | {numbers} |")
        total.update(c.instructions)
    print(f"| **all** | | | | | **{total.total()}** |")
    if with_instructions:
        print("\n" + ", ".join(f"{name} {number}" for name, number in total.most_common(16)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--capabilities", nargs="+", default=["8.0", "9.0"])
    parser.add_argument("--instructions", action="store_true", help="which they are, too")
    options = parser.parse_args()
    compiler, known = Compiler(), {}
    with tempfile.TemporaryDirectory() as scratch:
        recorder = compile_recorder(Path(scratch))
        started = {model: launches(model, recorder, Path(scratch) / model) for model in options.models}
    for model, kernels in started.items():
        for capability in options.capabilities:
            for launch in kernels:
                if (launch, capability) not in known:  # layers may share a kernel
                    known[launch, capability] = count(launch, capability, compiler)
            report(model, capability, [known[launch, capability] for launch in kernels], options.instructions)


if __name__ == "__main__":
    main()
