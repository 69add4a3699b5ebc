"""Fixes that put in, take out and scale compare energies, which must be right to the offset."""

import os
import subprocess

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import BIN
from lammps_input import SPECIES, oxide, read_dump, setup, write_data

from equipot import EquipotCalculator
from equipot.integrations.lammps import find_lammps

KELVIN = 8.617333262e-5  # eV
BAR = 6.241509e-7  # eV/Å³
DUMP = "dump 1 all custom 1 first.dump id fx fy fz\ndump_modify 1 sort id format float %20.12g\nrun 0\n"
SIDE, WANTED = 40.0, 5.0  # Å; atoms of an ideal gas in the box

BOX = f"""units metal
atom_style atomic
region box block 0 {SIDE} 0 {SIDE} 0 {SIDE}
create_box 2 box
create_atoms 1 random 5 4711 box overlap 6
mass 1 15.999
mass 2 28.085
pair_style equipot energy isolated
pair_coeff * * {{model}} O Si
"""


def gas(model) -> str:
    pressure = WANTED * KELVIN * 300 / SIDE**3 / BAR
    return BOX.format(model=model) + (
        f"fix mc all gcmc 1 20 0 1 29494 300.0 0.0 0.1 pressure {pressure} full_energy\n"
        "thermo_style custom step pe atoms\nthermo 1\n"
    )


def test_dilute_gas_has_the_density_of_an_ideal_one(lammps, model_file):
    """By a fix that excludes what it takes out, in two runs; isolated atoms have no energy."""
    result = lammps(gas(model_file("nequip-ideal")) + "run 300\nrun 300\n")
    numbers = result.thermo[:, 2]
    # 12,000 exchanges, about 300 of them independent: to 4 sigma of the mean of a Poisson variable.
    assert np.mean(numbers[50:]) == pytest.approx(WANTED, abs=0.5)
    assert np.var(numbers[50:]) == pytest.approx(WANTED, rel=0.5)


def test_widom_insertions_into_a_dilute_gas(lammps, model_file):
    """Whose excess chemical potential is zero; twice, since the fix leaves an exclusion behind."""
    script = BOX.format(model=model_file("nequip-ideal"))
    script += "fix mc all widom 1 200 1 29494 300.0 full_energy\n"
    script += "thermo_style custom step pe atoms f_mc[1]\nthermo 1\nrun 3\nrun 3\n"
    assert np.abs(lammps(script).thermo[1:, 3]).max() < 1e-4


def test_insertions_upon_an_atom_are_rejected(lammps, model_file):
    """All of them, into a sphere of 0.05 Å around it; MD refuses such atoms."""
    script = BOX.format(model=model_file("nequip-ideal"))
    script = script.replace("create_atoms 1 random 5 4711 box overlap 6", "create_atoms 1 single 20 20 20")
    sphere = "region near sphere 20 20 20 0.05\n"
    thermo = "thermo_style custom step pe atoms f_mc[{}]\nthermo_modify format float %.15g\nthermo 1\nrun 3\n"
    gcmc = "fix mc all gcmc 1 20 0 1 29494 300.0 0.0 0.1 pressure 1000 full_energy region near group near\n"
    gcmc = "group near empty\n" + gcmc.replace("mc all", "mc near")
    for ranks in (1, 2):
        found = lammps(script + sphere + gcmc + thermo.format(3), ranks).thermo
        assert (found[:, 2] == 1).all() and found[-1, 3] > 20 and not found[:, 1].any()
    widom = "fix mc all widom 1 50 1 29494 300.0 full_energy region near\n"
    assert not lammps(script + sphere + widom + thermo.format(2)).thermo[:, 3].any()
    upon = "create_atoms 1 single 20 20 20.05\nrun 0\n"
    assert "atoms 1 and 2 are 0.05 A apart" in lammps(script + upon, expect=None).output


def test_excluded_group_is_not_there(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip"))
    without = lammps(script + "group gone id 3 17 40\ndelete_atoms group gone compress no\nrun 0\n", 2).thermo
    excluded = "group gone id 3 17 40\nneigh_modify exclude group gone all\nrun 0\n"
    assert lammps(script + excluded, 2).thermo[0, 1:] == pytest.approx(without[0, 1:], rel=1e-12)
    two = "group one id 3\ngroup two id 4\nneigh_modify exclude group one two\nrun 0\n"
    refused = lammps(script + two, expect=None)
    assert "'neigh_modify exclude' would take neighbors from the model" in refused.output


@pytest.mark.parametrize(
    ("fix", "changes"),
    [
        ("deposit 4 1 2 4711 region room near 2.0", True),
        ("evaporate 2 3 room 4711", True),
        ("atom/swap 1 5 4711 30000 types 1 2", False),
        ("balance 2 1.0 shift xyz 5 1.0", False),
    ],
    ids=lambda fix: str(fix).split()[0],
)
def test_fixes_that_change_or_move_atoms(lammps, ensemble, tmp_path, fix, changes):
    """In the end energies and deviations are those of a run that begins with what was written."""
    atoms = oxide()
    atoms.set_cell([*atoms.cell.lengths()[:2], 18.0])
    write_data(tmp_path / "atoms.data", atoms)
    columns = "compute dev all equipot/deviation\nthermo_style custom step pe atoms c_dev[*]\n"
    columns += "thermo_modify format float %.15g lost ignore\nthermo 1\n"
    script = setup(ensemble("nequip")) + columns + "region room block 0 9 0 9 7 14\n"
    script += (
        f"velocity all create 600 1 loop geom\nfix 1 all nve\nfix it all {fix}\nrun 6\nwrite_data end.data\n"
    )
    for ranks in (1, 3):
        last = lammps(script, ranks).thermo[-1]
        fresh = lammps(setup(ensemble("nequip"), data="end.data") + columns + "run 0\n").thermo[0]
        assert last[1:] == pytest.approx(fresh[1:], rel=1e-9)
        assert (last[2] != len(atoms)) == changes


def test_energies_relative_to_isolated_atoms(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip"))
    total = lammps(script + "run 0\n").thermo
    isolated = script.replace("pair_style equipot", "pair_style equipot energy isolated")
    relative = lammps(isolated + "run 0\n", 2).thermo
    calculator = EquipotCalculator(model_file("nequip"), device="cpu")
    alone = {symbol: calculator.get_potential_energy(Atoms(symbol)) for symbol in SPECIES}
    offset = sum(alone[symbol] for symbol in oxide().get_chemical_symbols())
    assert total[0, 1] - relative[0, 1] == pytest.approx(offset, rel=1e-12)
    assert relative[0, 2:] == pytest.approx(total[0, 2:], rel=1e-9)


def test_adapted_scale(lammps, model_file, tmp_path):
    """For thermodynamic integration: energies, forces and virials times a number that may change."""
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(model_file("nequip"))
    scaled = "variable half equal 0.5\nfix scale all adapt 1 pair equipot scale * * v_half\n"
    lammps(script + DUMP)
    whole = read_dump(tmp_path / "first.dump")[0]
    result = lammps(script + scaled + DUMP)
    assert read_dump(tmp_path / "first.dump")[0][:, 1:4] == pytest.approx(0.5 * whole[:, 1:4], rel=1e-9)
    assert result.thermo[0, 1] == pytest.approx(0.5 * lammps(script + "run 0\n").thermo[0, 1], rel=1e-9)
    only_one = scaled.replace("* *", "1 1")
    assert "a model has one" in lammps(script + only_one + "run 0\n", expect=None).output


def test_masses_of_another_order_than_the_elements(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide(), specorder=SPECIES[::-1])
    result = lammps(setup(model_file("allegro")) + "run 0\n", 2)
    said = " ".join(result.output.split())
    assert "atom type 1 is O in pair_coeff, but its mass 28.085 is that of Si" in said
    write_data(tmp_path / "atoms.data", oxide())
    assert "but its mass" not in lammps(setup(model_file("allegro")) + "run 0\n").output


def test_heat_flux_of_symmetric_virials_is_warned_of(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    computes = (
        "compute ke all ke/atom\ncompute pe all pe/atom\ncompute s all {} NULL virial\n"
        "compute flux all heat/flux ke pe s\nrun 0\n"
    )
    warning = "'compute heat/flux' needs 'centroid/stress/atom'"
    for name in ("nequip", "allegro"):
        script = setup(model_file(name)) + computes
        assert warning in lammps(script.format("stress/atom"), 2).output
        assert warning not in lammps(script.format("centroid/stress/atom")).output


def test_shares_of_time_add_up(lammps, model_file, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    for newton in ("on", "off"):
        output = lammps(
            setup(model_file("nequip"), before=f"newton {newton}") + "fix 1 all nve\nrun 5\n", 2
        ).output
        line = next(line for line in output.splitlines() if "ms per step and rank" in line)
        shares = [
            float(word)
            for word in line.replace("%,", "").replace("%", "").split()
            if word[0] in "-0123456789"
        ]
        assert all(0 <= share <= 100 for share in shares[1:]) and sum(shares[1:]) == pytest.approx(
            100, abs=0.2
        )


@pytest.mark.parametrize("given", ["model.pt", "same.pt model.pt"])
def test_ranks_that_read_different_files(lammps, model_file, tmp_path, plugin, given):
    write_data(tmp_path / "atoms.data", oxide())
    script = setup(given) + "run 0\n"
    for folder, model in (("one", "nequip"), ("two", "nequip-one-layer")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.pt").write_bytes(model_file(model).read_bytes())
        (tmp_path / folder / "same.pt").write_bytes(model_file("nequip").read_bytes())
        (tmp_path / folder / "in.lammps").write_text(script)
        (tmp_path / folder / "atoms.data").write_bytes((tmp_path / "atoms.data").read_bytes())
    one, two = (
        ["-n", "1", "-wdir", tmp_path / name, BIN / "lmp", "-in", "in.lammps"] for name in ("one", "two")
    )
    command = [str(word) for word in [BIN / "mpiexec", *one, ":", *two]]
    environment = os.environ | {"LAMMPS_PLUGIN_PATH": str(plugin), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode != 0 and "the ranks have read different files" in run.stdout + run.stderr


def test_checkpoint_instead_of_a_deployed_file(lammps, tmp_path):
    write_data(tmp_path / "atoms.data", oxide())
    torch.save({"state_dict": {}}, tmp_path / "best.ckpt")
    result = lammps(setup(tmp_path / "best.ckpt") + "run 0\n", expect=None)
    assert "a training checkpoint, not a deployed model. Run 'equipot deploy" in " ".join(
        result.output.split()
    )


def test_lammps_py_in_the_folder_at_hand(tmp_path, monkeypatch):
    (tmp_path / "lammps.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert find_lammps().version > 20200000
