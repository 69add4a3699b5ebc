"""The command line starts fast: nothing heavy is imported before a command needs it."""

import subprocess
import sys

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


def run(*arguments: str) -> str:
    script = SCRIPT.format(arguments=arguments, heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


def test_help_imports_nothing_heavy():
    out = run("--help")
    assert out.endswith("exit code 0\nimported:\n")
    for command in ("train", "evaluate", "report", "deploy", "info", "check", "md", "schema"):
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
