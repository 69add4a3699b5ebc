"""Data at scale: many small frames from a text file to a store, opened, read at random, trained from.

Prints throughput of the conversion, the time until a training can start, resident memory, time per frame.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase.build import molecule

CUTOFF = 5.0
_NOISE = 0.05  # Å


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1_000_000)
    parser.add_argument("--format", choices=("xyz", "npz"), default="xyz", help="of the source")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: one for each core")
    parser.add_argument(
        "--folder", type=Path, default=None, help="for the files, which are removed afterwards"
    )
    parser.add_argument("--measure", choices=("start", "read", "load"), help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        {"start": measure_start, "read": measure_reading, "load": measure_loading}[arguments.measure](
            arguments.store
        )
        return
    folder = Path(tempfile.mkdtemp(prefix="equipot-data-", dir=arguments.folder))
    try:
        run(folder, arguments.frames, arguments.format, arguments.workers)
    finally:
        shutil.rmtree(folder)


def run(folder: Path, frames: int, form: str, workers: int | None) -> None:
    """Generate, convert and measure."""
    from equipot.config.data import LabelsConfig, UnitsConfig
    from equipot.data.convert import convert
    from equipot.machine import available_cores

    source, store = folder / f"frames.{form}", folder / "frames.equipot"
    start = time.perf_counter()
    {"xyz": write_xyz, "npz": write_npz}[form](source, frames)
    show(f"source, {form}", f"{source.stat().st_size / 1e6:,.0f} MB", f"written in {seconds(start)}")
    workers = workers or available_cores()
    before = cpu_seconds()
    start = time.perf_counter()
    labels = LabelsConfig(stress=None)
    convert([source], store, labels, UnitsConfig(), CUTOFF, workers)
    took = time.perf_counter() - start
    rate = frames / took
    show("conversion", f"{rate:,.0f} frames/s", f"{took:,.0f} s, {workers} workers")
    show(
        "  per second of a core's time",
        f"{frames / (cpu_seconds() - before):,.0f} frames",
        "reading, checks, edges, writing",
    )
    peaks = [
        resource.getrusage(who).ru_maxrss / 1e3 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    show("  peak memory", f"{peaks[0]:,.0f} MB", f"and {peaks[1]:,.0f} MB in the largest worker")
    show(
        "store",
        f"{store.stat().st_size / 1e6:,.0f} MB",
        f"{store.stat().st_size / frames:,.0f} bytes per frame",
    )
    start = time.perf_counter()
    convert([source], store, labels, UnitsConfig(), CUTOFF, workers)
    show("the same once more", seconds(start), "hashes the source, writes nothing")
    sys.stdout.flush()
    for what in ("start", "read", "load"):
        subprocess.run([sys.executable, __file__, "--measure", what, "--store", str(store)], check=True)


def measure_start(store: Path) -> None:
    """In a process of its own: from nothing to the first batch."""
    from equipot.config.data import DataConfig
    from equipot.data import load_datasets
    from equipot.graph import collate

    libraries = resident_memory()
    before, start = cpu_seconds(), time.perf_counter()
    data = load_datasets(DataConfig(train=[str(store)], validation=0.05), CUTOFF)
    ready, own = time.perf_counter() - start, cpu_seconds() - before
    collate([data.train[i] for i in range(5)])
    show("training can start after", f"{ready:.1f} s", f"{own:.1f} s of a core's time")
    show(
        "  of this the split file",
        f"{save_time(data, store.parent):.1f} s more",
        "written to the run directory",
    )
    show_memory(libraries)


def save_time(data, folder: Path) -> float:
    """Seconds."""
    start = time.perf_counter()
    data.split.save(folder / "split.json")
    return time.perf_counter() - start


def measure_reading(store: Path) -> None:
    """In a process of its own: frames in random order."""
    from equipot.config.data import Source
    from equipot.data.dataset import LazyDataset
    from equipot.data.pool import Pool, StorePart
    from equipot.data.store.file import Store

    libraries = resident_memory()
    start = time.perf_counter()
    opened = Store(store)
    show("opening the store", seconds(start), "reads and verifies the index")
    pool = Pool([StorePart(opened, Source((store,)))])
    dataset = LazyDataset(pool, pool.columns, opened.num_edges, ["H", "C", "O"], opened.cutoff)
    order = np.random.default_rng(0).permutation(len(dataset))[:100_000].tolist()
    before, start = cpu_seconds(), time.perf_counter()
    for i in order:
        dataset[i]
    took = time.perf_counter() - start
    own = cpu_seconds() - before
    per_frame, own = (f"{1e6 * spent / len(order):.0f} µs" for spent in (took, own))
    show("a graph at random", per_frame, f"{own} of a core's time; mean of {len(order):,}")
    show_memory(libraries)


def measure_loading(store: Path) -> None:
    """In a process of its own: how long optimizer steps wait for their frames."""
    import torch

    from equipot.config.data import DataConfig
    from equipot.data import load_datasets
    from equipot.data.batching import Budget, StepSampler, step_loader
    from equipot.models.nequip import NequIP
    from equipot.models.potential import Potential
    from equipot.models.predict import predict
    from equipot.models.terms import SpeciesScaleShift

    torch.set_num_threads(1)
    data = load_datasets(DataConfig(train=[str(store)], validation=0.05), CUTOFF).train
    network = NequIP(num_species=3, cutoff=CUTOFF, avg_num_neighbors=8.0, l_max=2, layers=4, channels=64)
    species = list(data.species)
    scale = SpeciesScaleShift([1.0] * len(species), [0.0] * len(species), trainable=False)
    potential = Potential(network.float(), species, scale, None)
    optimizer = torch.optim.Adam([w for w in potential.parameters() if w.requires_grad], 1e-4, fused=True)
    for workers in (0, 2):
        steps = iter(step_loader(data, StepSampler(data, Budget(5), 0), workers))
        waited, start = 0.0, 0.0
        for number in range(-5, 100):  # the first ones start the workers
            if number == 0:
                waited, start = 0.0, time.perf_counter()
            asked = time.perf_counter()
            step = next(steps)
            waited += time.perf_counter() - asked
            optimizer.zero_grad()
            prediction = predict(potential, step.parts[0])
            (prediction.energy.square().sum() + prediction.forces.square().sum()).backward()
            optimizer.step()
        took = time.perf_counter() - start
        share = f"{100 * waited / took:.1f} % of a step"
        show(
            f"waiting for data, {workers} workers",
            share,
            f"{10 * took:.0f} ms, 5 frames, NequIP, 64 channels",
        )


def write_xyz(path: Path, frames: int) -> None:
    """Ethanol with noise, made-up labels; extended XYZ."""
    symbols = molecule("CH3CH2OH").get_chemical_symbols()
    header = f'{len(symbols)}\nProperties=species:S:1:pos:R:3:forces:R:3 energy=%.8f pbc="F F F"\n'
    template = header + "".join(f"{symbol}{' %.8f' * 6}\n" for symbol in symbols)
    with path.open("w") as stream:
        for positions, energies, forces in blocks(frames):
            rows = np.concatenate([positions, forces], axis=2).reshape(len(positions), -1)
            for energy, row in zip(energies, rows.tolist(), strict=True):
                stream.write(template % (energy, *row))


def write_npz(path: Path, frames: int) -> None:
    """The same in the layout of rMD17, in eV."""
    positions, energies, forces = (np.concatenate(part) for part in zip(*blocks(frames), strict=True))
    numbers = molecule("CH3CH2OH").numbers
    np.savez(path, nuclear_charges=numbers, coords=positions, energies=energies, forces=forces)


def blocks(frames: int, size: int = 10_000):
    """Positions (B, N, 3), energies (B,), forces (B, N, 3) of harmonic springs to the mean structure."""
    random = np.random.default_rng(0)
    mean = molecule("CH3CH2OH").positions
    for begin in range(0, frames, size):
        noise = _NOISE * random.normal(size=(min(size, frames - begin), *mean.shape))
        yield mean + noise, -4200 + 10 * (noise**2).sum(axis=(1, 2)), -20 * noise


def show(what: str, value: str, remark: str = "") -> None:
    """A row of the table."""
    print(f"| {what} | {value} | {remark} |", flush=True)


def show_memory(libraries: float) -> None:
    """What this process holds now, and what of it was there before."""
    show("  resident memory", f"{resident_memory():,.0f} MB", f"{libraries:,.0f} MB of it libraries")
    show("  and pages of the store, shared", f"{status('RssFile') - library_files():,.0f} MB")


def seconds(start: float) -> str:
    """Since ``start``."""
    return f"{time.perf_counter() - start:.2f} s"


def status(name: str) -> float:
    """MB, from the kernel's list."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1e3


def resident_memory() -> float:
    """MB, without pages of the store, which are the page cache's."""
    return status("VmRSS") - (status("RssFile") - library_files())


def library_files() -> float:
    """MB of mapped files that are no store."""
    total, counted = 0, True
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if "-" in first:
            counted = "/" in line and ".equipot" not in line
        elif first == "Rss:" and counted:
            total += int(line.split()[1])
    return total / 1e3


def cpu_seconds() -> float:
    """Of this process and the ones it waited for, so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
