"""Reference energies beside extended XYZ, as Open Catalyst's download has them."""

import lzma
from dataclasses import replace

import pytest

from equipot.config.data import LabelsConfig, Source, UnitsConfig
from equipot.data import read_frames
from equipot.data.convert import cached_store, convert
from equipot.data.digests import RememberedDigests
from equipot.data.store.file import Store

REFERENCED = LabelsConfig(energy="adsorption_energy")
HEADER = (
    'Lattice="6.0 0.0 0.0 0.0 6.0 0.0 0.0 0.0 9.0" '
    "Properties=species:S:1:pos:R:3:move_mask:L:1:tags:I:1:forces:R:3 "
    'energy={} free_energy={} pbc="T T T"'
)
ATOMS = "Pt 0 0 0 F 0 0 0 0.1\nPt 2 2 0 T 1 0 0 0.2\nH 2 2 1.7 T 2 0 0 -0.3\n"
ENERGIES, REFERENCES = (-181.5, -90.25, -91.0), (-180.0, -91.0, -90.5)


@pytest.fixture(params=["plain", "packed"])
def pair(tmp_path, request):
    """A file of three frames and its references."""
    frames = "".join(f"3\n{HEADER.format(energy, energy - 1e-3)}\n{ATOMS}" for energy in ENERGIES)
    lines = "".join(f"random{i},frame{7 * i},{energy!r}\n" for i, energy in enumerate(REFERENCES))
    if request.param == "plain":
        paths = tmp_path / "0.extxyz", tmp_path / "0.txt"
        for path, text in zip(paths, (frames, lines), strict=True):
            path.write_text(text)
    else:
        paths = tmp_path / "0.extxyz.xz", tmp_path / "0.txt.xz"
        for path, text in zip(paths, (frames, lines), strict=True):
            path.write_bytes(lzma.compress(text.encode()))
    return paths


def write_lines(path, text):
    path.write_bytes(lzma.compress(text.encode()) if path.suffix == ".xz" else text.encode())


def test_energies_with_and_without(pair):
    path, _ = pair
    assert [frame.energy for frame in read_frames(path)] == list(ENERGIES)
    assert [frame.energy for frame in read_frames(path, REFERENCED)] == [-1.5, 0.75, -0.5]
    assert [frame.marks.tolist() for frame in read_frames(path)] == [[128, 1, 2]] * 3


def test_several_processes_see_the_same(pair, tmp_path):
    for i in range(1, 4):  # enough files for workers
        for file in pair:
            (tmp_path / file.name.replace("0", str(i), 1)).write_bytes(file.read_bytes())
    files = sorted(tmp_path.glob("*.extxyz*"))
    convert(files, tmp_path / "a.equipot", REFERENCED, UnitsConfig(), workers=2)
    store = Store(tmp_path / "a.equipot")
    assert [store.frame(i).energy for i in range(12)] == [-1.5, 0.75, -0.5] * 4


def test_a_cache_knows_when_references_change(pair, tmp_path):
    path, beside = pair
    source = Source((path,), labels=REFERENCED)

    def energies():
        store = cached_store(source, None, RememberedDigests(tmp_path / "cache"))
        return [store.frame(i).energy for i in range(len(store))]

    assert energies() == [-1.5, 0.75, -0.5]
    write_lines(beside, "a,frame0,-181.0\nb,frame1,-1\nc,frame2,1e1\n")
    assert energies() == [-0.5, -89.25, -101.0]
    beside.unlink()
    source = replace(source, labels=LabelsConfig())
    assert energies() == list(ENERGIES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,frame0,1.0\nb,frame1,2.0\n", "has only 2 lines, but {} more frames"),
        ("a,frame0,1.0\n" * 4, "has more than 3 lines, but {} 3 frames"),
        (
            "a,frame0,1.0\nb,frame1\nc,frame2,1.0\n",
            "line 2: expected system_id,frame_number,reference_energy",
        ),
        ("a,frame0,1.0\nb,frame1,nan\nc,frame2,1.0\n", "line 2: expected"),
    ],
)
def test_references_that_do_not_fit(pair, failing, text, words):
    path, beside = pair
    write_lines(beside, text)
    message = failing(path)
    assert message.startswith(f"{beside}") and words.format(path.name) in message


def test_references_cut_short(pair, failing):
    path, beside = pair
    if beside.suffix != ".xz":
        pytest.skip("a plain one lacks lines")
    beside.write_bytes(beside.read_bytes()[:-20])
    assert "truncated or damaged" in failing(path)


@pytest.mark.parametrize("text", ["", "notes on these frames\n", "a,b\nc,d\n", "id,frame,energy\n"])
def test_other_text_beside_it_is_something_else(pair, text, failing):
    path, beside = pair
    write_lines(beside, text)
    assert [frame.energy for frame in read_frames(path)] == list(ENERGIES)
    assert "'adsorption_energy'" in failing(path, REFERENCED)
