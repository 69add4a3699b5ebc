"""train → evaluate → deploy → info → check → md, by the commands a user types."""

import json
from dataclasses import asdict

import ase.io
import ase.units
import numpy as np
import pytest

from equipot.errors import DataError


def errors(folder) -> dict:
    return json.loads((folder / "errors.json").read_text(encoding="utf-8"))["errors"]


def test_training_leaves_a_complete_run_directory(workspace):
    for name in ("config.yaml", "split.json", "statistics.json", "log.txt", "metrics.csv"):
        assert (workspace.run / name).stat().st_size > 0, name
    for name in ("checkpoints/best.ckpt", "checkpoints/last.ckpt", "plots/learning_curve.png"):
        assert (workspace.run / name).stat().st_size > 0, name


def test_evaluate_run_and_deployed_file_agree(equipot, workspace, tmp_path):
    for model, name in ((workspace.run, "run"), (workspace.model, "deployed")):
        result = equipot("evaluate", model, workspace.test, "--output", tmp_path / name)
        assert result.code == 0, result.err
        assert "4 frames" in result.out and "16 atoms" in result.out and "GPa" in result.out
        assert "Worst frames by energy" in result.out
        assert (tmp_path / name / "parity.png").is_file()
    run, deployed = errors(tmp_path / "run"), errors(tmp_path / "deployed")
    for quantity in ("energy", "forces", "stress"):
        # The same float64 weights; only operator fusion may differ.
        assert deployed[quantity]["mae"] == pytest.approx(run[quantity]["mae"], rel=1e-9)


def test_evaluate_writes_predictions(equipot, workspace, tmp_path):
    result = equipot("evaluate", workspace.run, workspace.test, "--predictions", tmp_path / "p.xyz")
    assert result.code == 0 and "p.xyz" in result.out
    frames = ase.io.read(tmp_path / "p.xyz", index=":")
    reference = ase.io.read(workspace.test, index=":")
    assert len(frames) == 4
    for frame, expected in zip(frames, reference, strict=True):
        assert frame.info["reference_energy"] == pytest.approx(expected.get_potential_energy())
        assert frame.arrays["predicted_forces"].shape == (4, 3)


def test_evaluate_reads_other_forms_of_the_stress(equipot, workspace, tmp_path):
    frames = ase.io.read(workspace.test, index=":")
    for frame in frames:
        stress = frame.get_stress(voigt=False)
        frame.calc.results.pop("stress")
        frame.info |= {"dft_virial": -frame.get_volume() * stress, "in_kB": -10 * stress / ase.units.GPa}
    ase.io.write(tmp_path / "other.xyz", frames, format="extxyz")
    forms = {
        "stress": (workspace.test,),
        "virial": (tmp_path / "other.xyz", "--virial-key", "dft_virial"),
        "kbar": (tmp_path / "other.xyz", "--stress-key", "in_kB", "--stress-unit", "-kbar"),
    }
    for name, arguments in forms.items():
        result = equipot("evaluate", workspace.run, *arguments, "--output", tmp_path / name)
        assert result.code == 0, result.err
        # 8 digits in the file
        assert errors(tmp_path / name)["stress"]["mae"] == pytest.approx(
            errors(tmp_path / "stress")["stress"]["mae"], rel=1e-5
        )
    result = equipot("evaluate", workspace.run, tmp_path / "other.xyz")
    assert "What means a virial: dft_virial. Give the name the file uses with --virial-key." in result.err
    wrong = equipot("evaluate", workspace.run, tmp_path / "other.xyz", "--stress-unit", "kB")
    assert wrong.code == 1 and "Did you mean 'kbar'?" in wrong.err


def test_evaluate_and_check_advise_their_own_options(equipot, workspace, tmp_path):
    frames = ase.io.read(workspace.test, index=":")
    frames[1].pbc = [True, True, False]
    ase.io.write(tmp_path / "slab.xyz", frames, format="extxyz")
    result = equipot("evaluate", workspace.run, tmp_path / "slab.xyz")
    assert result.code == 0 and "3 frames" in result.out
    assert "1 of 4 frames are not periodic in all three directions" in result.err
    assert "--stress-key none" in result.err
    frames[2].info["energy-unit"] = "hartree"
    frames[3].calc.results["energy"] = np.nan
    ase.io.write(tmp_path / "faulty.xyz", frames, format="extxyz")
    for command in (("evaluate", workspace.run), ("data", "check")):
        found = equipot(*command, tmp_path / "faulty.xyz")
        text = " ".join((found.out + found.err).replace("│", " ").split())
        assert found.code == 1 and "frame 2" in text and "--energy-unit" in text
    del frames[2].info["energy-unit"]
    ase.io.write(tmp_path / "nan.xyz", frames, format="extxyz")
    refused = equipot("evaluate", workspace.run, tmp_path / "nan.xyz")
    assert refused.code == 1 and "--missing nan" in refused.err
    result = equipot("evaluate", workspace.run, tmp_path / "nan.xyz", "--missing", "nan")
    assert result.code == 0, result.err
    assert "1 of 4 frames have no energy label 'energy' (the first is frame 3" in result.err


def test_every_command_takes_labels_of_atoms_that_are_no_symbols(equipot, workspace, tmp_path):
    file, symbol = tmp_path / "types.xyz", ase.io.read(workspace.test, index=0).symbols[0]
    file.write_text(workspace.test.read_text().replace(f"\n{symbol} ", "\ntype1 "))
    commands = [("data", "inspect"), ("data", "check"), ("evaluate", workspace.run)]
    commands += [("data", "convert", "--output", tmp_path / "a.equipot")]
    commands += [
        ("data", "split", "--output", tmp_path / "sets", "--train", "2", "--validation", "1", "--test", "1")
    ]
    for command in commands:
        refused = equipot(*command, file)
        text = " ".join((refused.out + refused.err).replace("│", " ").split())
        assert refused.code == 1 and "'type1' is not a chemical element" in text
        taken = equipot(*command, file, "--species-map", f"type1={symbol}")
        assert "type1" not in taken.out + taken.err
        assert taken.code == 0 or "check" in command, taken.err


def test_evaluate_reads_labels_by_other_names(equipot, workspace, tmp_path):
    frames = ase.io.read(workspace.test, index=":")
    for frame in frames:
        frame.info["dft_energy"] = frame.get_potential_energy() + 4.0  # 1 eV/atom off
        frame.calc = None
    ase.io.write(tmp_path / "renamed.xyz", frames, format="extxyz")
    arguments = ("--energy-key", "dft_energy", "--forces-key", "none", "--output", tmp_path / "out")
    result = equipot("evaluate", workspace.run, tmp_path / "renamed.xyz", *arguments)
    assert result.code == 0, result.err
    assert errors(tmp_path / "out")["forces"]["atoms"] == 0
    assert errors(tmp_path / "out")["energy"]["mae"] == pytest.approx(1000, rel=0.5)


def test_report_is_written_again_elsewhere(equipot, workspace, tmp_path):
    assert (workspace.run / "report.html").is_file()  # at the end of the training
    result = equipot("report", workspace.run, "--output", tmp_path / "page.html")
    assert result.code == 0 and "page.html" in result.out
    assert "finished, 3 of 3 epochs" in (tmp_path / "page.html").read_text(encoding="utf-8")
    assert equipot("report", tmp_path).code == 1


def test_info_prints_the_metadata(equipot, workspace):
    result = equipot("info", workspace.model)
    assert result.code == 0
    for expected in ("nequip", "Cu", "4 Å", "channels: 4"):
        assert expected in result.out


def test_check_passes(equipot, workspace):
    result = equipot("check", workspace.model, "--device", "cpu")
    assert result.code == 0, result.out
    for expected in ("rotation", "permutation", "energy conservation", "passed"):
        assert expected in result.out
    assert "FAILED" not in result.out


def test_md_writes_trajectory_log_and_plot(equipot, workspace, tmp_path):
    arguments = ["md", workspace.test, "--model", workspace.model, "--ensemble", "nve", "--temperature", "50"]
    arguments += ["--steps", "20", "--timestep", "0.5", "--interval", "5", "--output", tmp_path / "md"]
    result = equipot(*arguments, "--supercell", "2", "1", "1")
    assert result.code == 0, result.err
    assert "ns/day" in result.out
    trajectory = ase.io.read(tmp_path / "md" / "trajectory.extxyz", index=":")
    assert len(trajectory) == 5 and len(trajectory[0]) == 8
    log = np.genfromtxt(tmp_path / "md" / "log.csv", delimiter=",", names=True)
    # Velocity Verlet at 0.5 fs and 50 K on copper: fluctuations far below this.
    assert np.ptp(log["total_energy_eV"]) < 1e-3
    assert (tmp_path / "md" / "plot.png").is_file()


def test_every_option_of_md_reaches_the_run(equipot, monkeypatch):
    asked = {
        "ensemble": "npt", "temperature": 250.0, "steps": 7, "timestep": 0.25, "pressure": 2.0,
        "friction": 0.03, "seed": 5, "interval": 3, "skin": 0.7, "thermostat": "nose-hoover",
        "mask": (0, 0, 1), "velocities": "draw", "restart-interval": 50, "stop-below": "0.9",
        "energy": "isolated", "field": "0,0.5,0",
    }  # fmt: skip
    found = {}

    def run_md(structure, model, output, settings, *, skin, **_):
        found.update(asdict(settings), skin=skin)
        raise DataError("seen enough")

    monkeypatch.setattr("equipot.integrations.md.run_md", run_md)
    options = []
    for name, value in asked.items():
        options += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    assert "seen enough" in equipot("md", "some.xyz", "--model", "model.pt", *options).err
    assert found.pop("log_interval") == asked.pop("interval")
    asked["field"] = (0.0, 0.5, 0.0)
    assert found == {name.replace("-", "_"): value for name, value in asked.items()}


def test_relax_and_its_exit_code(equipot, workspace, tmp_path):
    """A table on the terminal, files, and 1 where structures did not converge; then it goes on."""
    arguments = ["relax", workspace.test, f"{workspace.test}@0", "--model", workspace.model, "--fmax", "1e-3"]
    arguments += ["--output", tmp_path / "out"]
    frames = len(ase.io.read(workspace.test, ":")) + 1
    result = equipot(*arguments, "--steps", "1")
    assert result.code == 1 and f"0 of {frames} converged." in result.out and "unconverged" in result.out
    result = equipot(*arguments, "--steps", "200")
    assert result.code == 0, result.err
    assert f"{frames} of {frames} converged." in result.out
    images = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    assert len(images) == frames and max(abs(image.get_forces()).max() for image in images) < 1e-3
    assert equipot(*arguments, "--steps", "200", "--fmax", "0.1").code == 1  # another relaxation


def test_every_option_of_relax_reaches_the_run(equipot, monkeypatch):
    asked = {"pressure": 2.0, "mask": (0, 0, 1), "optimizer": "fire", "fmax": 0.5, "smax": 0.3, "steps": 7,
             "skin": 0.7, "max-edges": 99, "species-map": "A=C", "device": "cpu"}  # fmt: skip
    found = {}

    def run_relax(structures, model, output, settings, **others):
        found.update(asdict(settings), structures=structures, **others)
        raise DataError("seen enough")

    monkeypatch.setattr("equipot.integrations.relax.run_relax", run_relax)
    options = ["--cell", "--constant-volume", "--overwrite", "--pressure", "0"]
    for name, value in asked.items():
        options += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    assert "does nothing" in equipot("relax", "a.xyz", "b.xyz", "--model", "model.pt", *options).err
    options.remove("--constant-volume")
    assert "seen enough" in equipot("relax", "a.xyz", "b.xyz", "--model", "model.pt", *options).err
    asked |= {"force": asked.pop("fmax"), "stress": asked.pop("smax"), "cell": True, "overwrite": True}
    asked |= {"structures": ["a.xyz", "b.xyz"], "hydrostatic": False, "constant_volume": False}
    assert found == {name.replace("-", "_"): value for name, value in asked.items()}


def test_override_and_resume(equipot, workspace, tmp_path):
    """A training of two epochs, resumed to three, continues its metrics instead of starting again."""
    run = tmp_path / "run"
    first = equipot("train", workspace.config, "training.epochs=2", f"run.directory={run}")
    assert first.code == 0, first.err
    second = equipot("train", workspace.config, "training.epochs=3", "--resume", run)
    assert second.code == 0, second.err
    epochs = np.genfromtxt(run / "metrics.csv", delimiter=",", names=True)["epoch"]
    assert list(epochs) == [1, 2, 3]


def test_schema_is_json(equipot):
    result = equipot("schema")
    assert result.code == 0
    assert {"data", "model", "training", "run"} <= set(json.loads(result.out)["properties"])
