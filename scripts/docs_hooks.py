"""What MkDocs shows beside docs/: pages elsewhere in the repository, and text files that pages link to.

Links are written for the repository; here they become links between the pages of the site. A folder is shown
by its README.md or as a list, a text file as a page with its text.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import dirname, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/*/README.md", "docs/*.md", "docs/api/*.md")
LINK = re.compile(r"(?<=\]\()(?!https?:)([^)\s#]+)(?=[)#])")
_LANGUAGES = {".h": "c", ".c": "c", ".f90": "fortran", ".yaml": "yaml", ".py": "python"}


def target_of(link: str, page: str) -> str | None:
    """The file or folder in the repository that a link on ``page`` leads to; None if there is none."""
    path = normpath(PurePosixPath(page).parent / link)
    if (ROOT / path / "README.md").exists():
        return f"{path}/README.md"
    return path if (ROOT / path).exists() else None


def place_of(path: str) -> str:
    """Where the site has a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path == "README.md":
        return "index.md"
    return path if path.endswith(".md") else f"{path}.md"


def markdown_of(path: str) -> str:
    """The text of a page, or a page that shows another text file or lists a folder."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(item.name for item in file.iterdir() if not item.name.startswith("."))
        return f"# {path}\n\n" + "".join(f"- [{name}]({path}/{name})\n" for name in names)
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    return f"# {file.name}\n\n`{path}`\n\n````{_LANGUAGES.get(file.suffix, 'text')}\n{text.rstrip()}\n````\n"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/: the pages, and whatever they link to, one from the other."""
    waiting = [str(path.relative_to(ROOT)) for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    pages = set(waiting)
    for path in waiting:  # grows
        text = markdown_of(path)
        if not path.startswith("docs/"):
            level = InclusionLevel.INCLUDED if path in pages else InclusionLevel.NOT_IN_NAV
            file = File.generated(config, place_of(path), content=text, inclusion=level)
            file.generated_from = path
            files.append(file)
        for link in LINK.findall(text):
            target = target_of(link, path)
            if target and target not in waiting and not target.startswith("docs/"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository as those of the site. What leads nowhere stays, and MkDocs reports it."""
    path = getattr(page.file, "generated_from", f"docs/{page.file.src_uri}")

    def on_site(match: re.Match) -> str:
        target = target_of(match[0], path)
        return relpath(place_of(target), dirname(page.file.src_uri) or ".") if target else match[0]

    return lists(LINK.sub(on_site, markdown))


def lists(markdown: str) -> str:
    """Lists as Python-Markdown wants them: after a blank line, and those within another indented by four."""
    lines, within, code = [], False, False
    for line in markdown.splitlines():
        code ^= line.lstrip().startswith("```")
        item = None if code else re.match(r"( *)(?:[-*]|\d+\.) ", line)
        if item and not within and lines and lines[-1].strip():
            lines.append("")
        if item and 0 < len(item[1]) < 4:
            line = " " * (4 - len(item[1])) + line
        if line.strip():
            within = bool(item) or (within and line.startswith(" "))
        lines.append(line)
    return "\n".join(lines) + "\n"


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Docstrings name classes and functions in Sphinx's way: the name alone is shown."""
    return re.sub(r":(?:class|func|mod|meth):(?=<code>)", "", html)
