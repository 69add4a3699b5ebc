"""equipot elastic, eos, vibrations and neb from end to end, by a deployed model, and what they refuse."""

import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc100, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from equipot import cli
from equipot.errors import ConfigError, DataError, SimulationError
from equipot.properties.elastic import elastic
from equipot.properties.eos import eos
from equipot.properties.neb import neb
from equipot.properties.settings import (
    Common,
    ElasticSettings,
    EosSettings,
    NebSettings,
    VibrationSettings,
)
from equipot.properties.vibrations import vibrations

sys.path.insert(0, str(Path(__file__).parents[1] / "deploy"))
from standin import write_standin


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A float64 model of H, C, O: pairs, and a density squared."""
    path = tmp_path_factory.mktemp("model") / "model.pt"
    write_standin(path)
    return path


@pytest.fixture
def equipot(model_file, tmp_path, monkeypatch, capsys):
    """Run a command with the model in a folder of its own → (exit code, printed text, errors)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str):
        monkeypatch.setattr(
            sys, "argv", ["equipot", *arguments, "--model", str(model_file), "--device", "cpu"]
        )
        with pytest.raises(SystemExit) as left:
            cli.main()
            raise SystemExit(0)
        printed = capsys.readouterr()
        return left.value.code, " ".join(printed.out.split()), printed.err

    return run


def read(file: str) -> dict:
    return json.loads(Path(file).read_text())


def test_elastic(equipot):
    ase.io.write("carbon.xyz", bulk("C", "fcc", a=3.9), format="extxyz")
    code, _, err = equipot("elastic", "carbon.xyz")
    assert code == 1 and "is no minimum of this model" in err and not Path("elastic").exists()
    code, out, _ = equipot("elastic", "carbon.xyz", "--relax", "--strains", "0.002,0.004")
    assert code == 0 and "crystal class cubic" in out and "Wrote elastic/report.html" in out
    found = read("elastic/elastic.json")
    assert sorted(found["constants_GPa"]) == ["C11", "C12", "C44"] and found["born_stable"]
    assert found["symmetry_forbids_GPa"] < 1e-3 * found["constants_GPa"]["C11"]
    assert found["young_least_GPa"] <= found["young_hill_GPa"] <= found["young_largest_GPa"]
    assert {"young.png", "report.html"} <= {file.name for file in Path("elastic").iterdir()}
    code, _, err = equipot("elastic", "carbon.xyz", "--relax", "--strains", "half", "--output", "other")
    assert code == 1 and "--strains must be different numbers" in err
    ase.io.write("slab.xyz", fcc100("C", (1, 1, 3), a=3.9, vacuum=6.0, periodic=True), format="extxyz")
    for command in ("elastic", "eos"):  # before its cell would be relaxed
        code, _, err = equipot(command, "slab.xyz", "--relax", "--output", "other")
        assert code == 1 and "this is a slab (12.0 Å empty along c)" in err


def test_eos(equipot):
    ase.io.write("carbon.xyz", bulk("C", "fcc", a=3.9), format="extxyz")
    code, out, _ = equipot("eos", "carbon.xyz", "--relax", "--points", "7", "--span", "0.03")
    assert code == 0 and "Birch and Murnaghan" in out
    found = read("eos/eos.json")
    assert found["bulk_modulus_of_elastic_tensor_GPa"] == pytest.approx(found["bulk_modulus_GPa"], rel=0.01)
    assert ase.io.read("eos/minimum.extxyz").get_volume() == pytest.approx(found["volume_A3"])
    assert len(ase.io.read("eos/volumes.extxyz", ":")) == 7 and Path("eos/eos.png").is_file()


def test_vibrations(equipot):
    ase.io.write("water.xyz", Atoms("OH2", [[0, 0, 0], [2.2, 0, 0.1], [-0.5, 2.1, 0]]), format="extxyz")
    code, out, _ = equipot("vibrations", "water.xyz", "--relax", "--max-force", "0.001")
    assert (
        code == 0 and "a nonlinear molecule, has 3 vibrations" in out and "symmetry number 2 (as found" in out
    )
    found = read("vibrations/vibrations.json")
    assert found["imaginary_modes"] == 0 and max(np.abs(found["translations_and_rotations_per_cm"])) < 5
    assert found["thermochemistry"]["gibbs_energy_eV"] < found["thermochemistry"]["enthalpy_eV"]
    frames = ase.io.read("vibrations/modes.extxyz", ":")
    assert len(frames) == 3 * 16 and frames[16].info["mode"] == 1
    swing = frames[4].positions - frames[0].positions
    assert np.linalg.norm(swing, axis=1).max() == pytest.approx(0.3)
    lines = Path("vibrations/modes.xyz").read_text().splitlines()
    assert len(lines) == 3 * 5 and len(lines[2].split()) == 7 and lines[1].endswith("cm^-1")


def test_neb(equipot, monkeypatch):
    for k in (0, 1):
        layer = [[2.6 * x, 2.6 * y, 0] for x in range(3) for y in range(2)]
        atoms = Atoms("C6H", [*layer, [1.3 + 2.6 * k, 1.3, 1.8]])
        atoms.set_constraint(FixAtoms(range(6)))
        ase.io.write(f"{k}.xyz", atoms, format="extxyz")
    arguments = ["neb", "0.xyz", "1.xyz", "--relax", "--images", "3", "--check-saddle"]
    code, _, err = equipot(*arguments, "--steps", "2", "--no-climb")
    assert code == 1 and "--resume" in err
    assert len(ase.io.read("neb/unfinished.extxyz", ":")) == 5
    code, _, err = equipot(*arguments)
    assert code == 1 and "--resume goes on with it, --overwrite begins again" in err
    with monkeypatch.context() as broken:
        broken.setattr("equipot.properties.neb._saddle", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            equipot(*arguments, "--resume")
    assert Path("neb/unfinished.extxyz").is_file()
    code, out, _ = equipot(*arguments, "--resume")
    assert code == 0 and "the barrier is" in out
    found = read("neb/neb.json")
    assert (
        found["barrier_forward_eV"] == pytest.approx(found["barrier_backward_eV"], abs=1e-3)
        and found["climbed"]
    )
    assert found["saddle_imaginary_modes"] == 1 and found["highest_image"] == 2
    names = {file.name for file in Path("neb").iterdir()}
    assert names == {"band.extxyz", "neb.json", "neb.yaml", "profile.png", "report.html", "saddle.extxyz"}
    assert len(ase.io.read("neb/band.extxyz", ":")) == 5


def test_elastic_of_what_is_not_stable_or_under_stress():
    unstable = elastic(
        bulk("Cu", "sc", a=2.4), EMT(), Common(max_stress=np.inf), ElasticSettings(strains="0.005")
    )
    assert "is not stable (Born)" in unstable.paragraphs[0] and "bulk_hill_GPa" not in unstable.numbers
    assert "linearity was not checked" in unstable.paragraphs[1] and not unstable.pictures
    stressed = elastic(
        bulk("Cu", a=3.5), EMT(), Common(max_stress=np.inf), ElasticSettings(strains="0.005,0.01")
    )
    assert any("under stress" in text for text in stressed.paragraphs)


def test_eos_without_the_elastic_tensor():
    found = eos(bulk("Cu", a=3.59), EMT(), settings=EosSettings(span=0.005, points=5, elastic=False))
    assert "bulk_modulus_of_elastic_tensor_GPa" not in found.numbers
    assert found.numbers["bulk_modulus_derivative"] == pytest.approx(5, abs=2) and len(found.paragraphs) == 2


def test_vibrations_of_a_saddle():
    """A row of three atoms of copper bends: twice imaginary; a bridge on a surface: once."""
    row = Atoms("Cu3", [[0, 0, -2.3], [0, 0, 0], [0, 0, 2.3]])
    found = vibrations(row, EMT(), Common(relax=True))
    assert found.numbers["imaginary_modes"] == 2 and "thermochemistry" not in found.numbers
    assert "no minimum and no saddle of first order" in found.paragraphs[0]
    with pytest.raises(SimulationError, match=r"expected one imaginary mode, found \d+i cm⁻¹, \d+i cm⁻¹"):
        vibrations(row, EMT(), Common(relax=True), VibrationSettings(saddle=True))
    slab = fcc100("Cu", (2, 2, 2), vacuum=5.0)
    add_adsorbate(slab, "Cu", 1.9, "bridge")
    slab.set_constraint(FixAtoms(range(8)))
    top = vibrations(slab, EMT(), Common(relax=True), VibrationSettings(saddle=True))
    assert top.numbers["imaginary_modes"] == 1 and top.numbers["geometry"] == "fixed"
    assert "gibbs_energy_eV" not in top.numbers["thermochemistry"]
    with pytest.raises(ConfigError, match="--symmetry-number"):
        vibrations(molecule("H2"), EMT(), settings=VibrationSettings(symmetry_number=0))


def test_neb_downhill_and_settings(tmp_path):
    with pytest.raises(ConfigError, match="--method must be one of"):
        NebSettings(method="magic")
    with pytest.raises(ConfigError, match=r"--spring must be from 0\.0001 to 1000 eV"):
        NebSettings(spring=-1)
    ends = []
    for height in (2.0, 3.0):  # a wall of repulsion that is not at a minimum: refused
        slab = fcc100("Cu", (1, 1, 2), vacuum=5.0)
        add_adsorbate(slab, "Cu", height, "ontop")
        slab.set_constraint(FixAtoms([0, 1]))
        ends.append(slab)
    with pytest.raises(SimulationError, match="is no minimum of this model"):
        neb(*ends, EMT(), Common(output=tmp_path))
    with pytest.raises(DataError, match=r"the last Cu2: expected the same atoms"):  # before they relax
        neb(ends[0], ends[1][:2], EMT(), Common(output=tmp_path))
