"""The documentation as a site, and what a reader of the repository sees of it: links, anchors, images."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PATTERNS = ("*.md", "docs/*.md", "docs/api/*.md", "examples/*/*.md")
PAGES = [page for pattern in PATTERNS for page in ROOT.glob(pattern)]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def build(config: Path, site: Path) -> subprocess.CompletedProcess:
    """MkDocs in a process of its own; whatever it warns of makes it fail."""
    options = ["--strict", "-f", str(config), "-d", str(site)]
    command = [sys.executable, "-m", "mkdocs", "build", *options]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture
def mkdocs():
    """The extra ``docs``."""
    for module in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(module, reason="the extra docs is not installed")


@pytest.mark.usefixtures("mkdocs")
def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")
    }
    assert {"index.html", "theory.html", "CONTRIBUTING.html", "examples/01_molecule/index.html"} <= set(pages)
    assert (
        "EQUIPOT_BAD_FILE" in pages["src/equipot/engine/include/equipot.h.html"]
    )  # a page links to the file
    assert re.search(r"<ol>.*?<li>(?:(?!</ol>).)*?<ul>", pages["CONTRIBUTING.html"], re.S)  # a list in a list
    assert "re-evaluate the reference structures" in pages["api/models.html"]  # a docstring
    fetched = re.compile(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"?(https?:[^\"> ]+)")
    assert not [(name, found) for name, text in pages.items() if (found := fetched.findall(text))]
    assert "theory.html#" in (tmp_path / "search" / "search_index.json").read_text("utf-8")


@pytest.mark.usefixtures("mkdocs")
def test_what_is_wrong_with_a_page_fails(tmp_path):
    """A section, a page and an image that are not there; a page that the navigation lacks."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    text = "# Wrong\n\n[a](training.md#no-such-section) [b](no_such_page.md) ![c](images/no_such.png)\n"
    (tmp_path / "docs" / "wrong.md").write_text(text, encoding="utf-8")
    config = tmp_path / "mkdocs.yml"
    hooks = ROOT / "scripts" / "docs_hooks.py"
    config.write_text(f"INHERIT: {ROOT / 'mkdocs.yml'}\nhooks: ['{hooks}']\nplugins: [search]\nwatch: []\n")
    done = build(config, tmp_path / "site")
    assert done.returncode == 1
    for fault in ("#no-such-section", "no_such_page.md", "no_such.png", "- wrong.md"):
        assert fault in done.stderr
    assert done.stderr.count("wrong.md") == 4


def text_of(page: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text("utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> Iterator[str]:
    """What code hosts make of headings: lower case, punctuation left out, blanks as hyphens."""
    for heading in re.findall(r"^#+ (.*)$", text_of(page), re.M):
        heading = re.sub(r"\]\([^)]*\)", "", heading)
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_links_of_the_repository_lead_to_files_and_to_their_sections():
    broken, checked = [], 0
    for page in PAGES:
        for link in LINK.findall(text_of(page)):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            checked += bool(anchor)
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert not broken, broken
    assert checked > 20


def test_what_the_page_on_python_imports_has_its_docstring_on_the_site():
    imports = re.findall(
        r"^from equipot\S* import (.*)$", (ROOT / "docs" / "python.md").read_text("utf-8"), re.M
    )
    names = {name.split()[0] for line in imports for name in line.split(",")}  # X, of X as Y
    assert len(names) > 20
    api = "".join(page.read_text("utf-8") for page in ROOT.glob("docs/api/*.md"))
    assert not [name for name in names if not re.search(rf"\b{name}\b", api)]
