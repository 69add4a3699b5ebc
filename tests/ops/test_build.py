"""The cache of compiled kernels: what is loaded, what is rebuilt, what is said."""

import json
import logging
import sys
import time

import pytest

from equipot import compile as compilation
from equipot.compile import KernelBuildError, Library
from equipot.errors import ConfigError
from equipot.ops import build as kernels


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a compiler that writes a word instead of a library."""
    monkeypatch.setenv("EQUIPOT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("EQUIPOT_KERNELS", raising=False)
    compiled = []

    def compile_word(self, directory):
        compiled.append(directory)
        (directory / kernels.LIBRARY).write_text("library")

    monkeypatch.setattr(Library, "compile", compile_word)
    monkeypatch.setattr(compilation, "find_compiler", lambda: "compiler 1.0")
    # As in a process that has not loaded them: other tests may have.
    monkeypatch.setattr(kernels, "operators_registered", lambda: False)
    kernels.kernels_available.cache_clear()
    yield compiled
    kernels.kernels_available.cache_clear()


def test_compiles_once_and_says_so(cache, caplog):
    with caplog.at_level(logging.INFO, "equipot"):
        first = kernels.build()
    assert "compiling the kernels into" in caplog.text and str(first.parent) in caplog.text
    caplog.clear()
    assert kernels.build() == first and len(cache) == 1
    assert caplog.text == ""


def test_rebuilds_on_request(cache):
    kernels.build()
    kernels.build(force=True)
    assert len(cache) == 2


@pytest.mark.parametrize("damage", ["altered", "truncated", "no manifest", "broken manifest", "other"])
def test_rebuilds_what_is_damaged_or_foreign(cache, damage):
    library = kernels.build()
    manifest = library.parent / "manifest.json"
    if damage == "altered":
        library.write_text("LIBRARY")
    elif damage == "truncated":
        library.write_text("")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "broken manifest":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "torch": ["1.0", "", True]}))
    kernels.build()
    assert len(cache) == 2 and library.read_text() == "library"


@pytest.mark.parametrize("part, value", [("torch", "other"), ("processor", "other"), ("sources", {})])
def test_another_torch_processor_or_source_gets_another_entry(cache, monkeypatch, part, value):
    first = kernels.build()
    wanted = kernels.library().wanted()
    monkeypatch.setattr(Library, "wanted", lambda self: {**wanted, part: value})
    assert kernels.build() != first and len(cache) == 2


def test_another_compiler_rebuilds_but_none_does_not(cache, monkeypatch):
    kernels.build()
    monkeypatch.setattr(compilation, "find_compiler", lambda: None)
    kernels.build()
    assert len(cache) == 1
    monkeypatch.setattr(compilation, "find_compiler", lambda: "compiler 2.0")
    kernels.build()
    assert len(cache) == 2


def test_no_compiler_falls_back_and_says_how_to_change_that(cache, monkeypatch, caplog):
    monkeypatch.setattr(compilation, "find_compiler", lambda: None)
    assert kernels.kernels_available() is False
    assert len(caplog.records) == 1
    assert "reference" in caplog.text and "slower" in caplog.text and "install g++" in caplog.text


def test_on_is_an_error_without_compiler(cache, monkeypatch):
    monkeypatch.setenv("EQUIPOT_KERNELS", "on")
    monkeypatch.setattr(compilation, "find_compiler", lambda: None)
    with pytest.raises(KernelBuildError, match="EQUIPOT_KERNELS=on"):
        kernels.kernels_available()


def test_library_that_does_not_load_falls_back(cache, caplog):
    assert kernels.kernels_available() is False  # the word "library" is no shared object
    assert "reference" in caplog.text


def test_off_neither_compiles_nor_loads(cache, monkeypatch):
    monkeypatch.setenv("EQUIPOT_KERNELS", "off")
    assert kernels.kernels_available() is False
    assert cache == []


def test_unknown_mode_is_refused(cache, monkeypatch):
    monkeypatch.setenv("EQUIPOT_KERNELS", "yes")
    with pytest.raises(ConfigError, match="auto, on or off, found 'yes'"):
        kernels.kernels_available()


def test_compiler_messages_are_passed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "SOURCES", tmp_path)
    monkeypatch.setenv("CXX", "python -c raise(SystemExit('cannot_compile'))")
    (tmp_path / "a.cpp").write_text("")
    with pytest.raises(KernelBuildError, match="cannot_compile"):
        kernels.library().compile(tmp_path)


@pytest.mark.parametrize(("cores", "gigabytes", "jobs"), [(3, 16, 3), (8, 2.5, 2), (4, 0.1, 1), (2, None, 2)])
def test_compiles_as_many_at_once_as_cores_and_memory_allow(tmp_path, monkeypatch, cores, gigabytes, jobs):
    memory = None if gigabytes is None else int(gigabytes * 2**30)
    monkeypatch.setattr(compilation, "available_cores", lambda: cores)
    monkeypatch.setattr(compilation, "available_memory", lambda: memory)
    # Each job waits until as many have started as may run together, then leaves how many do run.
    script = """
import pathlib, sys, time
folder, name, jobs = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(folder / f"{name}.started").touch()
(folder / f"{name}.running").touch()
end = time.monotonic() + 30
while len(list(folder.glob("*.started"))) < jobs and time.monotonic() < end:
    time.sleep(0.01)
time.sleep(0.3)
(folder / f"{name}.seen").write_text(str(len(list(folder.glob("*.running")))))
time.sleep(0.3)
(folder / f"{name}.running").unlink()
"""
    compilation.run_all([[sys.executable, "-c", script, str(tmp_path), str(i), str(jobs)] for i in range(6)])
    seen = [int(file.read_text()) for file in tmp_path.glob("*.seen")]
    assert len(seen) == 6 and max(seen) == jobs


def test_first_failure_ends_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "jobs_at_once", lambda: 2)
    slow = [sys.executable, "-c", f"import time; time.sleep(60); open({str(tmp_path / 'a')!r}, 'w')"]
    start = time.monotonic()
    with pytest.raises(KernelBuildError, match=r"(?s)the compiler failed: .*first words.*second words"):
        compilation.run_all(
            [slow, [sys.executable, "-c", "raise SystemExit('first words\\nsecond words')"], slow]
        )
    assert time.monotonic() - start < 30
