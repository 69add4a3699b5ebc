"""The programs on the pages run, in their order, as a reader would run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ase.io import read, write

from equipot.deploy.load import load_deployed

ROOT = Path(__file__).parents[1]
MOLECULE = ROOT / "examples" / "01_molecule"
# The first line of a block that needs no equipot.
APART = "# In a process of its own, without equipot."


def code_blocks(page: Path, language: str = "python", heading: str = "") -> list[str]:
    """Blocks of a page in a language, or of its section ``heading``, each at its line of the page."""
    section, block, blocks = "", None, []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines()):
        if block is None and line.startswith("```"):
            block, wanted = [""] * (number + 1), line == f"```{language}" and section.startswith(heading)
        elif line == "```":
            blocks += ["\n".join(block) + "\n"] if wanted else []
            block = None
        elif block is not None:
            block.append(line)
        elif line.startswith("## "):
            section = line
    return blocks


def run(block: str, page: Path, names: dict) -> None:
    """Run one block with the names of those before it, or by itself where it says so."""
    if not block.strip().startswith(APART):
        exec(compile(block, str(page), "exec"), names)
        return
    code = f"import sys; sys.modules['equipot'] = None\n{block.strip()}\n"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a part of the example's data under the names that the pages use."""
    write(tmp_path / "train.xyz", read(MOLECULE / "train.xyz", ":40"), format="extxyz")
    write(tmp_path / "test.xyz", read(MOLECULE / "test.xyz", ":4"), format="extxyz")
    write(tmp_path / "start.xyz", read(MOLECULE / "test.xyz", 0), format="extxyz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_on_python_and_then_the_readme(folder, capfd):
    page, readme = ROOT / "docs" / "python.md", ROOT / "README.md"
    blocks, last = code_blocks(page), code_blocks(readme, heading="## Use it from Python")
    assert len(blocks) > 10
    assert len(last) == 1
    names = {}
    for block in blocks:
        run(block, page, names)
    energy = names["prediction"].energy[0].item()  # of the frame whose energy the page has in three ways
    assert names["energies"].sum().item() == pytest.approx(energy, abs=1e-4)
    assert printed_energy(capfd.readouterr().out) == pytest.approx(energy, abs=1e-4)
    run(last[0], readme, {})  # with the model that the page has deployed
    assert run_in_cpp(page, folder) == pytest.approx(two_atoms(), abs=1e-2)


@pytest.fixture
def default_dtype():
    """Put back afterwards."""
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("folder", "default_dtype")
def test_the_page_on_theory():
    page = ROOT / "docs" / "theory.md"
    names, blocks = {}, code_blocks(page)
    assert len(blocks) > 15
    for block in blocks:
        run(block, page, names)


def test_the_page_on_layers():
    (block,) = code_blocks(ROOT / "examples" / "06_layer" / "README.md")
    names = {}
    run(block, ROOT / "examples" / "06_layer" / "README.md", names)
    assert names["mix"](names["messages"]).shape == names["x"].shape


def printed_energy(output: str) -> float:
    """The last number that is followed by eV."""
    return float(re.findall(r"(-?\d+\.\d+) eV\b", output)[-1])


def run_in_cpp(page: Path, folder: Path) -> float:
    """Build the page's program as the page says, run it, and take the energy that it prints (6 digits)."""
    (program,), (build,) = code_blocks(page, "cpp"), code_blocks(page, "cmake")
    (commands,) = (block for block in code_blocks(page, "") if block.strip().startswith("cmake -S"))
    (folder / "energy.cpp").write_text(program, encoding="utf-8")
    (folder / "CMakeLists.txt").write_text(build, encoding="utf-8")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return printed_energy(done.stdout)


def two_atoms() -> float:
    """The energy (eV) of what the C++ program evaluates."""
    vector = torch.tensor([0.0, 0.0, 1.1], dtype=torch.float64)
    edge_index = torch.tensor([[0, 1], [1, 0]])
    owned = torch.ones(2, dtype=torch.bool)
    model = load_deployed("model.pt", "cpu")
    return model(torch.stack([vector, -vector]), edge_index, edge_index[0] * 0, owned)[0].sum().item()


def test_what_a_block_gets_wrong_is_an_error_at_its_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n\n```python\nx = 1\n```\n\n## Next\n\n```python\n\nassert x == 2\n```\n")
    first, second = code_blocks(page)
    assert code_blocks(page, heading="## Next") == [second]
    names = {}
    run(first, page, names)
    with pytest.raises(AssertionError) as caught:
        run(second, page, names)
    assert page.read_text().splitlines()[caught.traceback[-1].lineno] == "assert x == 2"


def test_a_block_apart_has_no_equipot(tmp_path):
    with pytest.raises(AssertionError, match="equipot"):
        run(f"{APART}\nimport equipot\n", tmp_path / "page.md", {})


def test_links_between_the_files_lead_somewhere():
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)#:\s]+)[^):]*\)", page.read_text())
    ]
    assert len(links) > 50
    broken = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert not broken, broken
