"""Molecular dynamics from the command line's function: output, conservation, temperature, refusals."""

import errno
import json
import os
import signal

import ase.io
import ase.units
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import Hookean
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from equipot import EquipotCalculator
from equipot.errors import ConfigError, DataError, EquipotError, UnknownSpeciesError
from equipot.integrations import md
from equipot.integrations.md import FILES, MDSettings, SimulationError, degrees_of_freedom, run_md
from equipot.integrations.md_report import (
    COLUMNS,
    energy_drift,
    plot_log,
    read_log,
    summarize,
    summary_table,
)


@pytest.fixture(scope="module")
def water(model_file):
    """Relaxed with the model: the stand-in's bonds are not those of water."""
    atoms = molecule("H2O")
    atoms.calc = EquipotCalculator(model_file, device="cpu")
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
    atoms.calc = None
    return atoms


@pytest.fixture(scope="module")
def crystal(model_file):
    atoms = bulk("C", "fcc", a=3.0, cubic=True)
    atoms.calc = EquipotCalculator(model_file, device="cpu")
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    atoms.calc = None
    return atoms


@pytest.fixture
def gas(model_file):
    """512 atoms of two elements at rest, 10 Å apart, which is out of reach (4 Å)."""
    atoms = Atoms("HO", [[0, 0, 0], [10, 0, 0]], cell=[20, 10, 10], pbc=True).repeat((4, 8, 8))
    atoms.calc = EquipotCalculator(model_file, device="cpu")
    return atoms


def test_energies_relative_to_isolated_atoms(water, model_file, tmp_path):
    """In log and trajectory; the dynamics is the same."""
    runs = {}
    for energy in ("total", "isolated"):
        settings = MDSettings("nve", steps=10, timestep=0.25, log_interval=5, energy=energy)
        runs[energy] = run_md(water, model_file, tmp_path / energy, settings, device="cpu")
    alone = sum(EquipotCalculator(model_file).get_potential_energy(Atoms(symbol)) for symbol in water.symbols)
    total, isolated = (read_log(run.log) for run in runs.values())
    energies = isolated["potential_energy_eV"]
    np.testing.assert_allclose(energies, total["potential_energy_eV"] - alone, atol=1e-8)
    np.testing.assert_array_equal(isolated["temperature_K"], total["temperature_K"])
    frames = ase.io.read(runs["isolated"].trajectory, ":")
    np.testing.assert_allclose([frame.get_potential_energy() for frame in frames], energies, atol=1e-7)
    with pytest.raises(ConfigError, match="--energy must be total or isolated, found 'none'"):
        MDSettings(energy="none")


def test_nve_writes_everything(water, model_file, tmp_path):
    ase.io.write(tmp_path / "water.xyz", water)
    settings = MDSettings("nve", steps=100, timestep=0.25, log_interval=10)
    result = run_md(tmp_path / "water.xyz", model_file, tmp_path / "md", settings, device="cpu")
    assert sorted(p.name for p in result.directory.iterdir()) == sorted(set(FILES) - {"stopped.extxyz"})
    frames, log = ase.io.read(result.trajectory, ":"), read_log(result.log)
    assert len(frames) == len(log["step"]) == 11
    assert log["step"].tolist() == list(range(0, 101, 10))
    np.testing.assert_allclose(
        [f.get_potential_energy() for f in frames], log["potential_energy_eV"], atol=1e-7
    )
    assert np.ptp(log["total_energy_eV"]) / 3 < 1e-3
    assert result.plot.stat().st_size > 10_000
    assert json.loads((result.directory / "summary.json").read_text()) == result.summary
    assert result.summary["ns_per_day"] > 0
    assert result.summary["steps_per_neighbor_list"] > 5
    # Neither drifts away nor turns as a whole, which leaves 3 of 9 degrees of freedom.
    assert np.abs(frames[-1].get_momenta().sum(axis=0)).max() < 1e-6
    assert np.abs(frames[-1].get_angular_momentum()).max() < 1e-6
    np.testing.assert_allclose(
        log["kinetic_energy_eV"], 3 / 2 * ase.units.kB * log["temperature_K"], rtol=1e-6
    )


def test_last_step_is_logged(water, model_file, tmp_path):
    result = run_md(water, model_file, tmp_path, MDSettings(steps=7, log_interval=5), device="cpu")
    assert read_log(result.log)["step"].tolist() == [0, 5, 7]
    assert len(ase.io.read(result.trajectory, ":")) == 3


def test_same_seed_same_run(water, model_file, tmp_path):
    """On one CPU thread to the last bit; several may add in another order."""
    logs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        settings = MDSettings(steps=20, seed=seed)
        logs.append(read_log(run_md(water, model_file, tmp_path / name, settings, device="cpu").log))
    np.testing.assert_allclose(logs[0]["total_energy_eV"], logs[1]["total_energy_eV"], rtol=1e-10)
    assert abs(logs[0]["total_energy_eV"][-1] - logs[2]["total_energy_eV"][-1]) > 1e-6


def test_nvt_reaches_the_temperature(crystal, model_file, tmp_path):
    """32 atoms start relaxed, so half of the initial heat goes into the potential; friction restores it.

    The mean over n = 96 · (about 6 independent times) kinetic degrees scatters by √(2/n) = 6 %; allow 4σ.
    """
    settings = MDSettings("nvt", temperature=100, steps=600, timestep=2.0, friction=0.02)
    result = run_md(crystal, model_file, tmp_path, settings, supercell=(2, 2, 2), device="cpu")
    temperature = read_log(result.log)["temperature_K"]
    assert temperature[len(temperature) // 3 :].mean() == pytest.approx(100, rel=0.24)
    assert result.summary["atoms"] == 32


def test_friction_slows_free_atoms(gas):
    """At 0 K momenta decay as exp(−friction · time), which the integrator solves exactly."""
    dynamics = md._make_dynamics(gas, MDSettings("nvt", temperature=0, timestep=0.5, friction=0.01))
    momenta = np.random.default_rng(0).standard_normal(gas.positions.shape)
    gas.set_momenta(momenta)
    dynamics.run(20)
    np.testing.assert_allclose(gas.get_momenta(), np.exp(-0.01 * 20 * 0.5) * momenta, rtol=1e-12)


def test_thermostat_heats_free_atoms(gas):
    """From rest, kinetic energies grow as 3/2 kT (1 − exp(−2 friction · time)), of both elements alike.

    256 · 3 degrees each: their mean scatters by √(2/768) = 5 %; allow 4σ. So do the initial velocities.
    """
    dynamics = md._make_dynamics(gas, MDSettings("nvt", temperature=400, timestep=5.0, friction=0.01))
    thermal = 1.5 * ase.units.kB * 400
    assert _kinetic_energies(gas) == pytest.approx([thermal, thermal], rel=0.2)
    gas.set_momenta(np.zeros_like(gas.positions))
    dynamics.run(10)
    grown = thermal * (1 - np.exp(-2 * 0.01 * 10 * 5.0))
    assert _kinetic_energies(gas) == pytest.approx([grown, grown], rel=0.2)


def _kinetic_energies(atoms: Atoms) -> list[float]:
    """Means over hydrogen and oxygen, eV."""
    return [atoms[atoms.symbols == name].get_kinetic_energy() / 256 for name in ("H", "O")]


def test_free_atoms_fly_straight_on(gas, model_file, tmp_path):
    settings = MDSettings("nve", steps=4, timestep=2.0, log_interval=4)
    result = run_md(gas, model_file, tmp_path, settings, device="cpu")
    first, last = ase.io.read(result.trajectory, ":")
    moved = first.get_velocities() * (8 * ase.units.fs)
    np.testing.assert_allclose(last.positions - first.positions, moved, atol=1e-7)  # digits of the file
    assert read_log(result.log)["time_ps"].tolist() == [0.0, 0.008]


def test_pressure_of_an_ideal_gas(gas, model_file, tmp_path):
    settings = MDSettings("nvt", temperature=500, steps=2, log_interval=1)
    log = read_log(run_md(gas, model_file, tmp_path, settings, device="cpu").log)
    ideal = 512 * ase.units.kB * log["temperature_K"] / gas.get_volume()
    np.testing.assert_allclose(log["pressure_GPa"] * ase.units.GPa, ideal, rtol=1e-8)  # digits of the file
    assert log["volume_A3"] == pytest.approx(gas.get_volume())


def test_pressure_of_a_crystal_at_rest(crystal, model_file, tmp_path):
    """It is −dE/dV (central differences, 1e-4 of V: errors of its square), and holds the barostat."""
    crystal = crystal.copy()
    crystal.set_cell(0.97 * crystal.cell, scale_atoms=True)
    calculator, energies, volume = EquipotCalculator(model_file, device="cpu"), [], crystal.get_volume()
    for factor in (1 + 1e-4, 1 - 1e-4):
        changed = crystal.copy()
        changed.set_cell(factor ** (1 / 3) * crystal.cell, scale_atoms=True)
        energies.append(calculator.get_potential_energy(changed))
    expected = -(energies[0] - energies[1]) / (2e-4 * volume) / ase.units.GPa
    logs = []
    for name, pressure in (("same", expected), ("other", 1.1 * expected)):
        settings = MDSettings("npt", temperature=0, steps=5, timestep=5.0, pressure=pressure, log_interval=5)
        logs.append(read_log(run_md(crystal, model_file, tmp_path / name, settings, device="cpu").log))
    assert logs[0]["pressure_GPa"] == pytest.approx(expected, rel=1e-6)
    still, pressed = (log["volume_A3"][1] / volume - 1 for log in logs)
    assert abs(still) < -1e-3 * pressed


@pytest.mark.parametrize(("friction", "time"), [(0.1, 1000.0), (0.01, 2000.0)])
def test_barostat_slows_down(gas, friction, time):
    """Where nothing pushes (free atoms at rest, 0 GPa), ln V changes less and less, as exp(−t / time)."""
    dynamics = md._make_dynamics(gas, MDSettings("npt", temperature=0, timestep=50.0, friction=friction))
    dynamics.p_eps = 1.0
    volumes = []
    for _ in range(4):
        volumes.append(gas.get_volume())
        dynamics.run(1)
    changes = np.diff(np.log(volumes))
    assert changes[1:] / changes[:-1] == pytest.approx([np.exp(-50.0 / time)] * 2, rel=1e-9)


def test_npt_answers_to_pressure(crystal, model_file, tmp_path):
    volumes = {}
    for pressure in (0.0, 20.0):
        settings = MDSettings(
            "npt", temperature=20, steps=300, timestep=3.0, pressure=pressure, friction=0.02, log_interval=5
        )
        result = run_md(crystal, model_file, tmp_path / str(pressure), settings, device="cpu")
        log = read_log(result.log)
        volumes[pressure] = log["volume_A3"][len(log["step"]) // 2 :].mean()
        shape = ase.io.read(result.trajectory).cell
        np.testing.assert_allclose(
            shape / shape.lengths()[0], crystal.cell / crystal.cell.lengths()[0], atol=1e-6
        )
    assert volumes[20.0] < volumes[0.0]
    assert volumes[0.0] == pytest.approx(crystal.get_volume(), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensemble": "nph"}, "nve, nvt or npt"),
        ({"steps": 0}, "steps must be"),
        ({"timestep": -1.0}, "timestep"),
        ({"timestep": float("nan")}, "timestep"),
        ({"temperature": -1.0}, "temperature"),
        ({"log_interval": 0}, "--interval"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"temperature": 2e5}, "--temperature"),
        ({"friction": float("inf")}, "--friction"),
        ({"pressure": float("nan")}, "--pressure"),
        ({"pressure": 1e300}, "--pressure"),
        ({"seed": -1}, "--seed"),
        ({"steps": 2.5}, "--steps must be a whole number"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        MDSettings(**change)


def refusal(expected, message, *arguments, **keywords):
    with pytest.raises(expected, match=message):
        run_md(*arguments, **keywords)


def test_refusals_leave_nothing(water, model_file, tmp_path):
    out, cpu = tmp_path / "out", {"device": "cpu"}
    refusal(ConfigError, "npt needs", water, model_file, out, MDSettings("npt"), **cpu)
    refusal(UnknownSpeciesError, "contains Si", bulk("Si"), model_file, out, **cpu)
    refusal(DataError, "There is no file", tmp_path / "none.xyz", model_file, out, **cpu)
    refusal(DataError, "is not a file, nor a folder of", tmp_path, model_file, out, **cpu)
    refusal(ConfigError, "not periodic", water, model_file, out, supercell=(2, 1, 1), **cpu)
    refusal(DataError, "at least 2 atoms", water[:1], model_file, out, **cpu)
    refusal(EquipotError, "no such file", water, tmp_path / "none.pt", out, **cpu)
    bad = tmp_path / "bad.xyz"
    bad.write_text("3\n\nH 0 0\n")
    refusal(DataError, "should have 3 atoms", bad, model_file, out, **cpu)
    two = tmp_path / "two.xyz"
    ase.io.write(two, [water, water])
    refusal(DataError, "does not name one frame", f"{two}@:", model_file, out, **cpu)
    refusal(DataError, "no such frame", f"{two}@99", model_file, out, **cpu)
    for skin in (-1.0, float("nan"), float("inf")):
        refusal(ConfigError, "--skin", water, model_file, out, skin=skin, **cpu)
    clash = Atoms("H2", [[0, 0, 0], [0, 0, 0.05]])
    refusal(DataError, "Atoms 0 and 1 are 0.0500 Å apart", clash, model_file, out, **cpu)
    assert not out.exists()


def test_npt_of_a_molecule_needs_no_model(water, tmp_path):
    refusal(ConfigError, "npt needs", water, tmp_path / "none.pt", tmp_path / "out", MDSettings("npt"))


@pytest.mark.parametrize("rows", [0, 2])
def test_full_disk_is_what_is_reported(water, model_file, tmp_path, monkeypatch, rows):
    record, calls = md.record, []

    def failing(*arguments):
        calls.append(1)
        if len(calls) > rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        record(*arguments)

    monkeypatch.setattr(md, "record", failing)
    with pytest.raises(OSError, match=f"Cannot write {tmp_path}: No space left") as caught:
        run_md(water, model_file, tmp_path, MDSettings(steps=5, log_interval=1), device="cpu")
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "plot.png").exists() == (rows > 0)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signal_leaves_whole_files(
    request, water, model_file, tmp_path, monkeypatch, capsys, number, expected
):
    # Tests started in the background of a shell inherit an ignored Ctrl-C.
    handler = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}[number]
    original = signal.signal(number, handler)
    request.addfinalizer(lambda: signal.signal(number, original))
    measure = md.measure

    def interrupted(atoms, step, *arguments):
        if step == 7:
            os.kill(os.getpid(), number)
        return measure(atoms, step, *arguments)

    monkeypatch.setattr(md, "measure", interrupted)
    with pytest.raises(expected):
        run_md(water, model_file, tmp_path, MDSettings(steps=1000, log_interval=5), device="cpu")
    assert read_log(tmp_path / "log.csv")["step"].tolist() == [0, 5, 7]
    assert len(ase.io.read(tmp_path / "trajectory.extxyz", ":")) == 3
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["steps"], summary["steps_requested"]) == (7, 1000)
    assert (tmp_path / "plot.png").exists()
    assert f"Stopped at step 7 of 1000; what was done is in {tmp_path}." in capsys.readouterr().err
    assert signal.getsignal(number) is handler


def test_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(",".join(COLUMNS) + "\n" + "0,0,1,2,3,4,nan,nan\n" + "1,0.5,1,-2")
    assert read_log(path)["step"].tolist() == [0]
    path.write_text("")
    assert all(len(column) == 0 for column in read_log(path).values())


def test_short_nve_names_no_drift(water, model_file, tmp_path):
    settings = MDSettings("nve", steps=8, log_interval=1)
    summary = run_md(water, model_file, tmp_path, settings, device="cpu").summary
    assert not {name for name in summary if "drift" in name or "fluctuation" in name}
    labels = list(summary_table(summary).columns[0].cells)
    assert {"time (ps)", "mean temperature (K)"} <= set(labels)


def test_volume_is_drawn_without_offset(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    log = {name: np.arange(3.0) for name in COLUMNS} | {"volume_A3": 12345.0 + np.arange(3.0) * 1e-4}
    plot_log(log, tmp_path / "plot.png")
    axes = figures[0].axes
    assert [ax.get_ylabel() for ax in axes] == ["temperature (K)", "energy − start (eV)", "volume (Å³)"]
    axes[2].yaxis.get_major_formatter().set_locs([12345.0, 12345.0001])
    assert axes[2].yaxis.get_major_formatter().get_offset() == ""


def test_occupied_folder(water, model_file, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    settings = MDSettings(steps=3)
    refusal(ConfigError, "not empty.*--overwrite", water, model_file, tmp_path, settings, device="cpu")
    run_md(water, model_file, tmp_path, settings, overwrite=True, device="cpu")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_explosion_is_stopped(water, model_file, tmp_path):
    """Two atoms almost on top of each other."""
    clash = water.copy()
    clash.positions[1] = clash.positions[0] + [0.0, 0.0, 0.5]
    with pytest.raises(SimulationError, match=r"Stopped at step \d+ .*(temperature|not finite)"):
        run_md(clash, model_file, tmp_path, MDSettings("nve", steps=1000, log_interval=1), device="cpu")
    assert {p.name for p in tmp_path.iterdir()} == {
        "trajectory.extxyz",
        "log.csv",
        "restart.npz",
        "plot.png",
        "stopped.extxyz",
    }
    good = ase.io.read(tmp_path / "trajectory.extxyz", ":")
    assert all(np.isfinite(frame.positions).all() for frame in good)


def test_drift_of_a_known_line():
    """2 meV/atom/ps for 5 ps, 4 atoms."""
    time = np.linspace(0.0, 5.0, 51)
    drift = energy_drift(time, -7.0 + 4 * 0.002 * time, 4)
    assert drift["drift_meV_per_atom_per_ps"] == pytest.approx(2.0, abs=1e-9)
    assert drift["drift_meV_per_atom"] == pytest.approx(10.0, abs=1e-9)
    assert drift["fluctuation_meV_per_atom"] == pytest.approx(0.0, abs=1e-9)


def test_speed():
    """1 ps in 86.4 s is one nanosecond a day."""
    log = {name: np.ones(2) for name in COLUMNS}
    summary = summarize(log, MDSettings(steps=9000, timestep=0.5), 2000, 3, seconds=86.4, list_builds=100)
    assert summary["time_ps"] == pytest.approx(1.0)
    assert summary["ns_per_day"] == pytest.approx(1.0)
    assert summary["steps_per_neighbor_list"] == 20


def test_degrees_of_freedom():
    water, carbon_dioxide, crystal = molecule("H2O"), molecule("CO2"), bulk("C", cubic=True)
    assert degrees_of_freedom(water, "nve") == 3
    assert degrees_of_freedom(carbon_dioxide, "nve") == 4
    assert degrees_of_freedom(crystal, "nve") == 21
    assert degrees_of_freedom(water, "nvt") == 9


def test_energy_of_springs_is_in_the_log(water, model_file, tmp_path):
    """Hookean is a force: the total energy is conserved with its energy only."""
    pulled = water.copy()
    length = pulled.get_distance(1, 2)
    pulled.set_constraint(Hookean(1, 2, 5.0, rt=0.9 * length))
    settings = MDSettings("nve", steps=40, timestep=0.25, log_interval=1)
    log = read_log(run_md(pulled, model_file, tmp_path, settings, device="cpu").log)
    frames = ase.io.read(tmp_path / "trajectory.extxyz", ":")
    springs = [2.5 * max(f.get_distance(1, 2) - 0.9 * length, 0) ** 2 for f in frames]
    alone = [f.get_potential_energy() for f in frames]
    np.testing.assert_allclose(log["potential_energy_eV"], np.add(alone, springs), atol=1e-6)
    assert np.ptp(log["total_energy_eV"]) < 2e-3 < np.ptp(springs)
