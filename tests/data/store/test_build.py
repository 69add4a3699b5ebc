"""Building a store: resumed after a kill, by one process at a time, whole or not at all."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from equipot.config.data import DataConfig, LabelsConfig, UnitsConfig
from equipot.data import LazyDataset, load_datasets, read_frames
from equipot.data import workers as worker_processes
from equipot.data.convert import convert
from equipot.data.formats import xyz
from equipot.data.store import build
from equipot.data.store.file import Store, read_header
from equipot.errors import DataError

LABELS = LabelsConfig(energy="my_energy", forces="my_forces")
CUTOFF = 3.0
# Converts in parts of 10 frames, slowly.
SLOW = """
import sys, time
from pathlib import Path
from equipot.config.data import LabelsConfig, UnitsConfig
from equipot.data.convert import convert
from equipot.data.formats import xyz
from equipot.data.store import build
xyz.PART_FRAMES = 10
encode = build._encode
build._encode = lambda task: (time.sleep(0.2), encode(task))[1]
labels = LabelsConfig(energy="my_energy", forces="my_forces")
convert([Path(sys.argv[1])], Path(sys.argv[2]), labels, UnitsConfig(), 3.0, workers=1)
"""


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(xyz, "PART_FRAMES", 10)


@pytest.fixture
def encoded(monkeypatch):
    """Numbers of the first frames of the parts that are encoded from now on."""
    firsts, encode = [], build._encode
    monkeypatch.setattr(build, "_encode", lambda task: (firsts.append(task.part.first), encode(task))[1])
    return firsts


@pytest.fixture
def source(water, write):
    """200 frames: 20 parts."""
    structures = []
    for i in range(200):
        atoms = water[i % 10].copy()
        atoms.positions += 0.001 * i * atoms.positions
        structures.append(atoms)
    return write(structures)


def make(source, output, workers=1):
    return convert([source], output, LABELS, UnitsConfig(), CUTOFF, workers)


def unfinished(output: Path) -> Path:
    return output.with_name(f".{output.name}.unfinished")


@pytest.fixture
def whole(source, tmp_path, small_parts):
    """The bytes of the undisturbed store."""
    make(source, tmp_path / "whole.equipot")
    return (tmp_path / "whole.equipot").read_bytes()


def test_killed_and_repeated(source, whole, tmp_path, encoded):
    output = tmp_path / "a.equipot"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SLOW, source, output], env=environment)
    while process.poll() is None and not (
        unfinished(output).exists() and unfinished(output).stat().st_size > len(whole) // 5
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not output.exists()
    assert make(source, output).written
    assert encoded and encoded[0] >= 30 and encoded[-1] == 190  # the parts done before are kept
    assert output.read_bytes() == whole and not unfinished(output).exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "other key"])
def test_unfinished_file_is_used_as_far_as_it_is_whole(source, whole, tmp_path, encoded, damage, monkeypatch):
    output = tmp_path / "a.equipot"
    with monkeypatch.context() as patched, pytest.raises(RuntimeError):
        patched.setattr(build, "_finish", lambda *_: (_ for _ in ()).throw(RuntimeError))
        make(source, output)
    content = bytearray(unfinished(output).read_bytes())
    if damage == "cut":
        content = content[:-100]
    else:
        content[20 if damage == "other key" else -100] ^= 1
    unfinished(output).write_bytes(content)
    encoded.clear()
    make(source, output)
    assert encoded == ([190] if damage != "other key" else list(range(0, 200, 10)))
    assert output.read_bytes() == whole


def test_full_disk(source, whole, tmp_path, encoded):
    output = tmp_path / "a.equipot"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match=r"Cannot write .*a.equipot: File too large.*\.a\.equipot\.unf"):
            make(source, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not output.exists()
    encoded.clear()
    make(source, output)
    assert encoded[0] >= 50 and output.read_bytes() == whole


def test_of_two_builders_one_waits(source, whole, tmp_path, encoded, monkeypatch, caplog):
    caplog.set_level("INFO", logger="equipot")
    output = tmp_path / "a.equipot"
    encode = build._encode
    monkeypatch.setattr(build, "_encode", lambda task: (time.sleep(0.02), encode(task))[1])
    results = []
    threads = [threading.Thread(target=lambda: results.append(make(source, output))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result.written for result in results) == [False, False, True]
    assert len(encoded) == 20 and "Another process is making" in caplog.text
    assert output.read_bytes() == whole and not unfinished(output).exists()


def test_several_workers_write_the_same(source, whole, tmp_path):
    # Worker processes start with the third part; parts are cut in this process.
    make(source, tmp_path / "a.equipot", workers=2)
    assert (tmp_path / "a.equipot").read_bytes() == whole


def test_error_in_a_worker_names_the_frame(source, tmp_path, small_parts):
    text = source.read_text().replace("my_energy=-14.3", "my_energy=abc", 3)
    source.write_text(text)
    with pytest.raises(DataError, match=r"frames.xyz, frame 3 .*my_energy.* must be one number"):
        make(source, tmp_path / "a.equipot", workers=2)
    assert not list(tmp_path.glob("*a.equipot*"))


def test_killed_worker_leaves_what_is_done(source, whole, tmp_path, monkeypatch):
    start = worker_processes._start

    def start_and_kill():
        process = start()
        process.kill()
        return process

    with (
        monkeypatch.context() as patched,
        pytest.raises(ChildProcessError, match=r"SIGKILL.*goes on from there"),
    ):
        patched.setattr(worker_processes, "_start", start_and_kill)
        make(source, tmp_path / "a.equipot", workers=2)
    make(source, tmp_path / "a.equipot")
    assert (tmp_path / "a.equipot").read_bytes() == whole


def test_file_without_frames(source, tmp_path):
    (tmp_path / "empty.xyz").write_text("\n")
    with pytest.raises(DataError, match=r"empty\.xyz contains no frames"):
        convert([source, tmp_path / "empty.xyz"], tmp_path / "a.equipot", LABELS, UnitsConfig(), CUTOFF, 1)
    assert not list(tmp_path.glob("*a.equipot*"))


def test_source_that_changes_meanwhile(source, tmp_path, monkeypatch):
    encode = build._encode
    monkeypatch.setattr(build, "_encode", lambda task: (os.utime(source, (1, 1)), encode(task))[1])
    with pytest.raises(DataError, match="A file changed while"):
        make(source, tmp_path / "a.equipot")
    assert not list(tmp_path.glob("*a.equipot*"))


def test_folder_that_cannot_be_written_to(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"Cannot write .*a\.equipot"):
        make(source, tmp_path / "file" / "a.equipot")


def test_larger_than_a_part_in_other_formats(source, water, tmp_path, write, monkeypatch):
    from equipot.data import formats

    monkeypatch.setattr(formats, "PART_ATOMS", 7)  # two molecules
    path = write(water, "a.traj")
    labels = LabelsConfig(energy="my_energy", forces=None)  # ASE's format keeps no arrays of other names
    convert([path], tmp_path / "a.equipot", labels, UnitsConfig(), CUTOFF, 1)
    energies = [frame.energy for frame in read_frames(tmp_path / "a.equipot", required=("energy",))]
    assert energies == [frame.energy for frame in read_frames(path, labels)]


def config(source, folder, **fields):
    labels = {"energy": "my_energy", "forces": "my_forces"}
    return DataConfig(train=[str(source)], labels=labels, validation=20, cache=folder, **fields)


def test_cache_is_made_once_and_gives_the_same_data(source, tmp_path, encoded):
    plain = load_datasets(config(source, None), CUTOFF)
    first = load_datasets(config(source, tmp_path / "cache"), CUTOFF)
    made = len(encoded)
    again = load_datasets(config(source, tmp_path / "cache"), CUTOFF, plain.split)
    assert made > 0 and len(encoded) == made
    assert isinstance(first.train, LazyDataset)
    assert first.split == plain.split == again.split  # frames go under the names of their files
    assert first.statistics == plain.statistics
    assert first.validation.frames[3].where == plain.validation.frames[3].where
    load_datasets(config(source, tmp_path / "cache"), 2.0)
    assert len(list((tmp_path / "cache").glob("*.equipot"))) == 2


def test_cache_of_another_version_or_a_damaged_one_is_made_again(source, tmp_path, encoded, caplog):
    caplog.set_level("INFO", logger="equipot")
    settings = config(source, tmp_path / "cache")
    load_datasets(settings, CUTOFF)
    (path,) = (tmp_path / "cache").glob("*.equipot")
    content = path.read_bytes()
    for damaged, words in ((b"EQUIPOT1" + content[8:], "another version"), (content[:-5], "is damaged")):
        path.write_bytes(damaged)
        encoded.clear()
        load_datasets(settings, CUTOFF)
        assert encoded and words in caplog.text and path.read_bytes() == content


def test_cache_notices_that_a_file_changed(source, tmp_path):
    settings = config(source, tmp_path / "cache")
    before = load_datasets(settings, CUTOFF)
    text = source.read_text()
    source.write_text(text.replace("my_energy=-14.0", "my_energy=-15.0"))
    assert load_datasets(settings, CUTOFF).statistics != before.statistics
    with pytest.raises(DataError, match="changed since the split was drawn"):
        load_datasets(settings, CUTOFF, before.split)


def test_store_says_what_it_is(source, tmp_path):
    make(source, tmp_path / "a.equipot")
    header = read_header(tmp_path / "a.equipot")
    assert (header["cutoff"], header["num_frames"]) == (CUTOFF, 200)
    assert header["files"] == [[str(source), [[0, 200]]]] and header["names"]["energy"] == ["my_energy"]
    assert len(Store(tmp_path / "a.equipot")) == 200
