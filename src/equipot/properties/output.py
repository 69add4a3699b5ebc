"""What a property ends in: numbers (JSON, YAML), pictures, a page that tells it; all whole or absent."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table as RichTable

from equipot.errors import ConfigError
from equipot.files import atomic_write, naming_errors, read_json, require_writable, write_json, write_text
from equipot.properties.settings import Common

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
_Dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # the former, in C, is not in every PyYAML
_TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Table:
    """Cells are texts, or numbers that are shown with four digits."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def texts(self) -> list[list[str]]:
        return [
            [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in self.rows
        ]


@dataclass(frozen=True)
class Result:
    """Of one property, ``name`` in one word."""

    name: str
    numbers: dict[str, Any]  # a unit in each key, as ``bulk_modulus_GPa``; numpy's arrays and numbers will do
    paragraphs: list[str]  # plain text: what was computed, and what to think of it
    tables: list[Table] = field(default_factory=list)
    pictures: dict[str, "Figure"] = field(default_factory=dict)  # by file name
    files: dict[str, Callable[[Path], Any]] = field(default_factory=dict)  # other files: who writes them
    doubts: list[str] | None = None  # warnings, which come last; None of a property that has none

    def __post_init__(self):
        if self.doubts is not None:
            warnings = [f"Warning: {text}" for text in self.doubts]
            self.numbers["warnings"] = warnings
            self.paragraphs.extend(warnings)


def folder_of(name: str, common: Common) -> Path:
    """Where a result goes."""
    return common.output or Path(name)


def check_folder(name: str, common: Common) -> Path:
    """Before the work: the folder, new, empty or with an earlier result to replace.

    Raises:
        ConfigError: it is a file, or cannot be made or written to; or it is not empty, without --overwrite or
            with no such result in it.
    """
    folder = folder_of(name, common)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"The output folder {folder} is a file. Name another folder with --output.")
    require_writable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return folder
    if not (folder / f"{name}.json").is_file():
        raise ConfigError(
            f"The output folder {folder} is not empty, and holds no {name}.json of an earlier result. "
            "Name another folder with --output."
        )
    if not common.overwrite:
        raise ConfigError(
            f"The output folder {folder} is not empty. Name another with --output, or give --overwrite."
        )
    return folder


def write(result: Result, folder: Path) -> list[Path]:
    """All files, the JSON last: where it is, the others are whole. Those of an earlier result go."""
    summary = folder / f"{result.name}.json"
    with naming_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if summary.is_file():
            for name in read_json(summary).get("files", []):
                (folder / Path(name).name).unlink(missing_ok=True)
            summary.unlink()
    for name, figure in result.pictures.items():
        with atomic_write(folder / name) as temporary:
            figure.savefig(temporary, dpi=150)
    for name, write_file in result.files.items():
        with atomic_write(folder / name) as temporary:
            write_file(temporary)
    write_text(folder / REPORT, render(result))
    names = [*result.pictures, *result.files, f"{result.name}.yaml", REPORT]
    numbers = plain(result.numbers | {"files": names})
    write_text(summary.with_suffix(".yaml"), yaml.dump(numbers, Dumper=_Dumper, sort_keys=False))
    write_json(summary, numbers)
    return [folder / name for name in (summary.name, *names)]


def finish(result: Result, common: Common, console: Console | None = None) -> list[Path]:
    """Write, and print what was found and where it is."""
    files = write(result, folder_of(result.name, common))
    show(result, console or Console())
    for file in files:
        print(f"Wrote {file}")
    return files


def show(result: Result, console: Console) -> None:
    """Paragraphs and tables."""
    for paragraph in result.paragraphs:
        console.print(paragraph, markup=False, highlight=False)
    for table in result.tables:
        shown = RichTable(*table.columns, title=table.title, title_justify="left")
        for row in table.texts():
            shown.add_row(*row)
        console.print(shown)


def write_columns(path: Path, columns: Mapping[str, NDArray]) -> None:
    """CSV with a line of names."""
    table = np.column_stack(list(columns.values()))
    np.savetxt(path, table, "%.8g", ",", header=",".join(columns), comments="")


def render(result: Result) -> str:
    """The page; it needs nothing but itself."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    pictures = {name: _data_uri(figure) for name, figure in result.pictures.items()}
    text = _TEMPLATE.read_text(encoding="utf-8")
    # Without long arrays, which the JSON has.
    short = {k: v for k, v in result.numbers.items() if np.size(v) <= 9 or isinstance(v, Mapping)}
    described = json.dumps(plain(short), indent=1, ensure_ascii=False)
    return environment.from_string(text).render(result=result, pictures=pictures, described=described)


def plain(value: Any) -> Any:
    """The same as JSON has it: lists, numbers, texts; NaN and infinities are null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return str(value) if isinstance(value, Path) else value


def _data_uri(figure: "Figure") -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
