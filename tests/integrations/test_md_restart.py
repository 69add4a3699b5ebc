"""A run that was interrupted and resumed is the run that was not, byte for byte; other runs are refused."""

import json
import logging
import os
import signal

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.constraints import FixAtoms, FixBondLengths

from equipot.errors import ConfigError, DataError
from equipot.integrations import md
from equipot.integrations.md import MDSettings, run_md
from equipot.integrations.md_report import read_log

CASES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"ensemble": "nvt"},
    "csvr": {"ensemble": "nvt", "thermostat": "csvr"},
    "chains": {"ensemble": "nvt", "thermostat": "nose-hoover"},
    "npt": {"ensemble": "npt"},
    "masked": {"ensemble": "npt", "mask": (1, 1, 0)},
    "mtk": {"ensemble": "npt", "thermostat": "nose-hoover"},
    "masked mtk": {"ensemble": "npt", "thermostat": "nose-hoover", "mask": (0, 0, 1)},
}


@pytest.fixture(scope="module")
def crystal():
    atoms = bulk("CO", "rocksalt", a=4.4, cubic=True).repeat((2, 1, 1))
    atoms.rattle(0.02, seed=1)
    return atoms


@pytest.fixture(scope="module")
def slab(crystal):
    atoms = crystal.copy()
    atoms.set_constraint(FixAtoms([0, 1, 2, 3]))
    return atoms


def settings(case="langevin", steps=40, **changes):
    given = {"temperature": 600, "timestep": 2.0, "log_interval": 3, "restart_interval": 10, "seed": 4}
    return MDSettings(**CASES[case], **(given | changes), steps=steps)


class Killed(BaseException):
    """As SIGKILL: nothing is written after it."""


def killed_at(step, monkeypatch, *arguments, **options):
    """Run until ``step``, then vanish."""
    with monkeypatch.context() as patch:
        measure = md.measure

        def measured(atoms, now, *rest):
            if now == step:
                raise Killed
            return measure(atoms, now, *rest)

        patch.setattr(md, "measure", measured)
        with pytest.raises(Killed):
            run_md(*arguments, **options, device="cpu")


@pytest.mark.parametrize("case", CASES)
def test_resumed_run_is_the_same(case, crystal, slab, model_file, tmp_path, monkeypatch):
    """Killed twice, between restart files and between rows, with lists that are used for many steps."""
    atoms = slab if case in ("nve", "langevin", "csvr", "chains", "npt") else crystal
    whole = run_md(atoms, model_file, tmp_path / "whole", settings(case), device="cpu")
    parts, resume = tmp_path / "parts", {"resume": True}
    killed_at(17, monkeypatch, atoms, model_file, parts, settings(case))
    assert read_log(parts / "log.csv")["step"][-1] == 15
    killed_at(34, monkeypatch, atoms, model_file, parts, settings(case), **resume)
    resumed = run_md(atoms, model_file, parts, settings(case), device="cpu", **resume)
    for name in ("log.csv", "trajectory.extxyz"):
        assert (parts / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert 2 < whole.summary["steps_per_neighbor_list"] < 40
    assert resumed.summary["steps"] == 40


def test_stopped_by_a_signal_and_with_more_steps(request, crystal, model_file, tmp_path, monkeypatch, capsys):
    """The rows that a stop and an end add out of turn are not in the run that goes on."""
    original = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    request.addfinalizer(lambda: signal.signal(signal.SIGTERM, original))
    run_md(crystal, model_file, tmp_path / "whole", settings(), device="cpu")
    with monkeypatch.context() as patch:
        measure = md.measure

        def interrupted(atoms, step, *rest):
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return measure(atoms, step, *rest)

        patch.setattr(md, "measure", interrupted)
        with pytest.raises(SystemExit):
            run_md(crystal, model_file, tmp_path / "parts", settings(), device="cpu")
    assert "--resume goes on" in capsys.readouterr().err
    for steps in (20, 20, 40):  # again with nothing left to do
        run_md(crystal, model_file, tmp_path / "parts", settings(steps=steps), device="cpu", resume=True)
        assert read_log(tmp_path / "parts" / "log.csv")["step"][-1] == steps
    for name in ("log.csv", "trajectory.extxyz"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.fixture(scope="module")
def done(crystal, model_file, tmp_path_factory):
    """A run of 12 steps."""
    output = tmp_path_factory.mktemp("done")
    run_md(crystal, model_file, output, settings(steps=12), device="cpu")
    return output


@pytest.fixture
def begun(done, tmp_path):
    output = tmp_path / "begun"
    output.mkdir()
    for path in done.iterdir():
        (output / path.name).write_bytes(path.read_bytes())
    return output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 500}, "--temperature: 600, now 500"),
        ({"timestep": 1.0}, "--timestep: 2.0, now 1.0"),
        ({"seed": 5, "log_interval": 4}, "--seed: 4, now 5; --interval: 3, now 4"),
        ({"case": "csvr"}, "--thermostat: langevin, now csvr"),
        ({"energy": "isolated"}, "--energy: total, now isolated"),
        ({"steps": 11}, "it has done 12 steps, --steps is 11"),
    ],
)
def test_other_settings_are_refused(changes, message, crystal, model_file, begun):
    before = (begun / "log.csv").read_bytes()
    with pytest.raises(ConfigError, match=message):
        run_md(crystal, model_file, begun, settings(**changes), device="cpu", resume=True)
    assert (begun / "log.csv").read_bytes() == before


def test_other_structure_skin_and_model_are_refused(crystal, model_file, begun, tmp_path):
    moved, fixed = crystal.copy(), crystal.copy()
    moved.positions[0] += 1e-9
    fixed.set_constraint(FixAtoms([0]))
    run = {"device": "cpu", "resume": True}
    for atoms in (moved, fixed):
        with pytest.raises(ConfigError, match="structure: "):
            run_md(atoms, model_file, begun, settings(steps=15), **run)
    with pytest.raises(ConfigError, match=r"--skin: 0.5, now 0.4"):
        run_md(crystal, model_file, begun, settings(steps=15), skin=0.4, **run)
    restart = begun / "restart.npz"
    content = dict(np.load(restart))
    about = json.loads(str(content["about"]))
    about["origin"]["model"] = ["another"]
    np.savez(restart, **(content | {"about": json.dumps(about)}))
    with pytest.raises(ConfigError, match="model: "):
        run_md(crystal, model_file, begun, settings(steps=15), **run)


def test_damaged_files(crystal, model_file, begun):
    run = (crystal, model_file, begun, settings(steps=15))
    restart = begun / "restart.npz"
    whole = restart.read_bytes()
    place = whole.index(np.load(restart)["atoms/positions"].tobytes()) + 6
    other_digit = bytes([whole[place] ^ 1])
    for damaged in (whole[: len(whole) // 2], whole[:place] + other_digit + whole[place + 1 :], b""):
        restart.write_bytes(damaged)
        with pytest.raises(DataError, match=r"restart.npz: damaged"):
            run_md(*run, device="cpu", resume=True)
    restart.write_text("steps = 12")
    with pytest.raises(DataError, match=r"expected a zip archive, found 10 bytes .* start a new run"):
        run_md(*run, device="cpu", resume=True)
    np.savez(restart, positions=np.zeros((8, 3)))
    with pytest.raises(DataError, match=r"no restart file of 'equipot md', for it has no 'about'. Put the"):
        run_md(*run, device="cpu", resume=True)
    restart.write_bytes(whole)
    content = dict(np.load(restart))
    about = json.loads(str(content["about"]))
    np.savez(restart, **(content | {"about": json.dumps(about | {"format": 99})}))
    with pytest.raises(DataError, match="restart format 99"):
        run_md(*run, device="cpu", resume=True)
    restart.write_bytes(whole)
    trajectory = begun / "trajectory.extxyz"
    frames, log = trajectory.read_bytes(), (begun / "log.csv").read_bytes()
    trajectory.write_bytes(trajectory.read_bytes()[:100])
    with pytest.raises(DataError, match=r"trajectory.extxyz has 100 bytes and had"):
        run_md(*run, device="cpu", resume=True)
    restart.write_bytes(whole)
    (begun / "trajectory.extxyz").write_bytes(frames)
    for damaged in (b"\xd4" * len(log), b"step\n1,2\n1,2,3\n" + log):
        (begun / "log.csv").write_bytes(damaged)
        with pytest.raises(
            DataError, match=r"log.csv: expected the log of a simulation, .* Put the whole file"
        ):
            run_md(*run, device="cpu", resume=True)
    restart.unlink()
    with pytest.raises(ConfigError, match=r"Nothing to resume: .* has no restart.npz"):
        run_md(*run, device="cpu", resume=True)


def test_another_machine_is_said(crystal, model_file, begun, caplog):
    restart = begun / "restart.npz"
    content = dict(np.load(restart))
    about = json.loads(str(content["about"]))
    about["platform"]["threads"] = 77
    np.savez(restart, **(content | {"about": json.dumps(about)}))
    run_md(crystal, model_file, begun, settings(steps=13), device="cpu", resume=True)
    assert "Not to the last bit as without the interruption: threads 77, now" in caplog.text


def test_a_file_from_before_there_were_two_energies_has_the_total(crystal, model_file, begun):
    restart = begun / "restart.npz"
    content = dict(np.load(restart))
    about = json.loads(str(content["about"]))
    del about["origin"]["--energy"]
    np.savez(restart, **(content | {"about": json.dumps(about)}))
    with pytest.raises(ConfigError, match="--energy: total, now isolated"):
        run_md(crystal, model_file, begun, settings(steps=13, energy="isolated"), device="cpu", resume=True)
    run_md(crystal, model_file, begun, settings(steps=13), device="cpu", resume=True)


def test_resume_begins_where_there_is_nothing(crystal, model_file, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    new = tmp_path / "new"
    run_md(crystal, model_file, new, settings(steps=3), device="cpu", resume=True)
    assert f"There is no run in {new} to resume: it begins." in caplog.text
    with pytest.raises(ConfigError, match="give one of them"):
        run_md(crystal, model_file, new, settings(steps=3), device="cpu", resume=True, overwrite=True)
    with pytest.raises(ConfigError, match="--overwrite, or --resume to go on"):
        run_md(crystal, model_file, new, settings(steps=3), device="cpu")


def test_half_written_file_is_not_used(crystal, model_file, tmp_path, monkeypatch):
    """The disk fills up while the second restart file is written: the first stays."""
    savez, calls = np.savez, []

    def failing(path, **arrays):
        calls.append(path)
        savez(path, **arrays)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:1000])
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", failing)
        with pytest.raises(OSError, match="No space left"):
            run_md(crystal, model_file, tmp_path / "parts", settings(), device="cpu")
    assert not list((tmp_path / "parts").glob(".*"))
    run_md(crystal, model_file, tmp_path / "parts", settings(), device="cpu", resume=True)
    run_md(crystal, model_file, tmp_path / "whole", settings(), device="cpu")
    assert (tmp_path / "parts" / "log.csv").read_bytes() == (tmp_path / "whole" / "log.csv").read_bytes()


def test_velocities_and_supercells(crystal, model_file, tmp_path):
    """A trajectory's last frame goes on with its velocities, to the digits of the file."""
    first = run_md(crystal, model_file, tmp_path / "a", settings("nve", steps=20), device="cpu")
    long = run_md(crystal, model_file, tmp_path / "b", settings("nve", steps=30), device="cpu")
    second = run_md(first.trajectory, model_file, tmp_path / "c", settings("nve", steps=10), device="cpu")
    last = [ase.io.read(result.trajectory, -1) for result in (long, second)]
    np.testing.assert_allclose(last[1].positions, last[0].positions, atol=1e-6)
    with pytest.raises(ConfigError, match="all copies would move alike"):
        run_md(
            first.trajectory, model_file, tmp_path / "d", settings("nve"), supercell=(1, 2, 1), device="cpu"
        )
    drawn = settings("nve", steps=1, velocities="draw")
    run_md(first.trajectory, model_file, tmp_path / "d", drawn, supercell=(1, 2, 1), device="cpu")


def test_fixed_atoms_in_the_output(slab, model_file, tmp_path):
    """The trajectory says which atoms are fixed; a run that starts from it keeps them where they are."""
    result = run_md(slab, model_file, tmp_path / "a", settings(steps=6), supercell=(1, 1, 2), device="cpu")
    frames = ase.io.read(result.trajectory, ":")
    fixed = frames[-1].constraints[0].index
    assert fixed.tolist() == [0, 1, 2, 3, 16, 17, 18, 19]
    for frame in frames:
        np.testing.assert_array_equal(frame.positions[fixed], frames[0].positions[fixed])
    log = read_log(result.log)
    np.testing.assert_allclose(
        log["temperature_K"], [2 * f.get_kinetic_energy() / (72 * ase.units.kB) for f in frames], rtol=1e-6
    )
    rigid = slab.copy()
    rigid.set_constraint(FixBondLengths([(0, 1)]))
    with pytest.raises(DataError, match="cannot repeat the constraints FixBondLengths"):
        run_md(rigid, model_file, tmp_path / "b", settings("nve"), supercell=(1, 1, 2), device="cpu")
    rigid_log = read_log(
        run_md(rigid, model_file, tmp_path / "b", settings("nve", steps=3), device="cpu").log
    )
    assert np.isnan(rigid_log["pressure_GPa"]).all()
    assert np.isfinite(rigid_log["volume_A3"]).all()
