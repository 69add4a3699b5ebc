"""What `equipot data inspect` says of a file, and the two commands as a user runs them."""

import json

import ase.io
import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from equipot.cli import app
from equipot.data.quality.render import histogram, print_summary


@pytest.fixture
def file(copper, tmp_path):
    for i, atoms in enumerate(copper):
        atoms.info["config_type"] = "strained" if i < 30 else "hot"
        atoms.info["my_energy"] = atoms.info.pop("energy")
        atoms.info["my_stress"] = atoms.info.pop("stress")
    ase.io.write(tmp_path / "cu.xyz", copper)
    return str(tmp_path / "cu.xyz")


def run(*arguments):
    return CliRunner().invoke(app, ["data", *arguments], env={"COLUMNS": "200"})


def test_summary(file, inspect, copper):
    [summary] = inspect(file)
    assert (summary.num_frames, summary.atoms, summary.species) == (65, (8, 8), {"Cu": 520})
    assert summary.groups == {"strained": 30, "hot": 35}
    assert summary.names["energy"] == {"my_energy": 65}
    assert summary.labelled == {"energy": 0, "forces": 65, "stress": 0}
    forces = np.concatenate([atoms.arrays["forces"] for atoms in copper])
    largest = np.linalg.norm(forces, axis=1).max()
    assert summary.values["force (eV/Å)"].max() == pytest.approx(largest, abs=1e-7)  # digits in the file
    console = Console(record=True, width=150)
    print_summary(summary, console)
    text = console.export_text()
    assert "'my_energy' in 65" in text and "strained: 30" in text and "nearest distance (Å)" in text


@pytest.mark.parametrize(
    ("values", "expected"), [([2.0, 2.0], "all equal"), ([0.0] * 1000 + [1.0], "█" + " " * 22 + "▁")]
)
def test_histogram_shows_single_values(values, expected):
    assert histogram(np.array(values)) == expected


def test_inspect_command(file):
    result = run("inspect", file, "--energy-key", "my_energy")
    assert result.exit_code == 0 and "energy per atom (eV)" in result.output
    [summary] = json.loads(run("inspect", file, "--json").output)
    assert summary["species"] == {"Cu": 520} and summary["values"]["atoms"]["max"] == 8


def test_check_command(file, tmp_path):
    options = ["--energy-key", "my_energy", "--stress-key", "my_stress"]
    result = run("check", file, *options)
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("65 usable frames in 1 file: 0 errors, 0 warnings.")
    report = json.loads(run("check", file, *options, "--energy-unit", "kcal/mol", "--json").output)
    assert report["files"] == {file: 65} and report["errors"] == 0
    assert [f["check"] for f in report["findings"] if f["severity"] == "warning"] == ["units"]  # tiny forces


def test_check_command_fails_on_errors(copper, tmp_path):
    copper[3].arrays["forces"][0, 0] = np.nan
    ase.io.write(tmp_path / "a.xyz", copper)
    result = run("check", str(tmp_path / "a.xyz"))
    assert result.exit_code == 1 and "unusable frame" in result.output and "64 usable frames" in result.output


def test_wrong_arguments(file):
    assert "Did you mean 'hdf5'?" in str(run("check", file, "--format", "hdf").exception)
    assert "Did you mean 'eV'?" in str(run("check", file, "--energy-unit", "ev").exception)
    assert "There is no file" in str(run("inspect", "nothing.xyz").exception)
