"""A fast start: nothing heavy is imported before it is needed, and no torch where the engine will do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from equipot import cli, devices

SILICON = Path(__file__).parents[2] / "examples/04_engine/silicon.pt"

HEAVY = ("torch", "lightning", "ase", "matplotlib", "e3nn", "pydantic", "numpy")

SCRIPT = """
import sys
sys.argv = ["equipot", *{arguments!r}]
from equipot import cli
try:
    cli.main()
except SystemExit as stop:
    print("exit code", stop.code or 0)
print("imported:", *[name for name in {heavy!r} if name in sys.modules])
"""


EVALUATE = """
import sys
from ase import Atoms
from equipot import EquipotCalculator
atoms = Atoms("Si2", [[0, 0, 0], [1.3, 1.4, 1.3]], cell=[5.4] * 3, pbc=True)
atoms.calc = EquipotCalculator(*{arguments!r}, engine="auto")  # model, device
assert atoms.get_potential_energy() < 0 and atoms.get_stress().shape == (6,)
print("imported:", *[name for name in ("scipy", *{heavy!r}) if name in sys.modules])
"""


def run(*arguments: str, script: str = SCRIPT) -> str:
    script = script.format(arguments=arguments, heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy():
    out = run("--help")
    assert out.endswith("exit code 0\nimported:\n")
    for command in (
        "train",
        "import",
        "evaluate",
        "report",
        "deploy",
        "info",
        "check",
        "md",
        "relax",
        "schema",
    ):
        assert f" {command} " in out


def test_version():
    from equipot import __version__

    out = run("--version")
    assert out.startswith(f"equipot {__version__}\n")
    assert out.endswith("imported:\n")


def test_a_wrong_config_is_reported_before_torch_is_imported():
    out = run("train", "nowhere.yaml")
    assert "exit code 1" in out
    assert "torch" not in out.splitlines()[-1]


def imported(*arguments: str) -> list[str]:
    return run(*arguments).splitlines()[-1].split()[1:]


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_calculator_needs_ase_and_numpy(tmp_path, device):
    """Of a file, and of an ensemble's folder."""
    if device == "auto" and devices.may_have_gpu():
        pytest.skip("torch is asked for the GPU of this machine")
    for index in range(2):
        shutil.copy(SILICON, tmp_path / f"member_{index}.pt")
    for model in (SILICON, tmp_path):
        assert run(str(model), device, script=EVALUATE) == "imported: ase numpy\n"


def test_models_run_where_torch_is_not_installed(tmp_path):
    absent = "import sys\nsys.modules['torch'] = None  # cannot be imported\n"
    assert run(str(SILICON), "cpu", script=absent + EVALUATE).endswith("ase numpy\n")
    structure = SILICON.parents[1] / "02_crystal/test.xyz"
    options = ("--model", str(SILICON), "--steps", "2", "--output", str(tmp_path / "md"))
    assert "summary.json" in run("md", str(structure), *options, script=absent + SCRIPT)
    assert "exit code 1" in run("build", script=absent + SCRIPT)


def test_torch_is_there_where_it_is_asked_for():
    script = EVALUATE.replace('"auto"', '"torch"')
    assert "torch" in run(str(SILICON), "cpu", script=script).split()


def test_dynamics_needs_no_torch(tmp_path):
    """And goes on from its restart file."""
    (tmp_path / "si.xyz").write_text(
        '2\nLattice="5.4 0 0 0 5.4 0 0 0 5.4" pbc="T T T" Properties=species:S:1:pos:R:3\n'
        "Si 0 0 0\nSi 1.3 1.4 1.3\n"
    )
    command = ("md", str(tmp_path / "si.xyz"), "--model", str(SILICON), "--device", "cpu")
    command += ("--output", str(tmp_path / "md"))
    for steps in ((), ("--resume", "--steps", "12")):
        found = imported(*command, *(steps or ("--steps", "8")))
        assert "ase" in found and not {"torch", "e3nn", "lightning"} & set(found)
    assert (tmp_path / "md" / "plot.png").is_file()


def test_phonons_need_no_torch(tmp_path):
    structure = tmp_path / "si.xyz"
    structure.write_text(
        '2\nLattice="0 2.7 2.7 2.7 0 2.7 2.7 2.7 0" pbc="T T T" Properties=species:S:1:pos:R:3\n'
        "Si 0 0 0\nSi 1.35 1.35 1.35\n"
    )
    command = ("phonons", str(structure), "--model", str(SILICON), "--device", "cpu", "--max-stress", "inf")
    command += ("--supercell", "2x2x2", "--no-checks", "--mesh", "20", "--output", str(tmp_path / "phonons"))
    assert "torch" not in imported(*command)
    assert (tmp_path / "phonons/phonons.json").is_file()


@pytest.mark.parametrize("command", ["info", "check --help", "md --help", "evaluate --help"])
def test_commands_that_evaluate_nothing_need_no_torch(command):
    assert "torch" not in imported(*command.split(), *([str(SILICON)] if command == "info" else []))


@pytest.mark.parametrize(
    ("given", "three"),
    [
        (["--mask", "1,0,1"], ["--mask", "1", "0", "1"]),
        (["--mask=1,0,1"], ["--mask", "1", "0", "1"]),
        (
            ["a", "--supercell", "2x3x4", "--mask", "0,0,1"],
            ["a", "--supercell", *"234", "--mask", *"001"],
        ),
        (["--mask", "1", "0", "1"], ["--mask", "1", "0", "1"]),
        (["--mask", "1,0"], ["--mask", "1,0"]),
        (["--field", "0,-1e-3,0.02"], ["--field", "0", "-1e-3", "0.02"]),
        (["--mask", "1,0,1,1"], ["--mask", "1,0,1,1"]),
        (["--supercells", "2,2,2", "x--mask=1,0,1"], ["--supercells", "2,2,2", "x--mask=1,0,1"]),
        ([], []),
    ],
)
def test_three_numbers_may_be_one_word(given, three):
    assert cli._three_numbers(given) == three
