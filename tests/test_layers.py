"""Imports point one way: cli → training → evaluation, integrations → deploy → models, data → nn → ops."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "equipot"

# Each part of the package and the parts it may import. A part may always import itself.
BOTTOM = {
    *(
        "errors",
        "cartesian",
        "files",
        "units",
        "quantities",
        "graph",
        "config",
        "devices",
        "machine",
        "run_directory",
    ),
    *("run_directory", "compile", "engine"),
}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "units": {"errors"},
    "cartesian": {"errors"},
    "quantities": {"cartesian", "errors", "units"},
    "graph": {"errors", "units", "quantities"},
    "config": {"cartesian", "errors", "files", "units", "quantities"},
    "devices": {"errors", "graph"},
    "machine": set(),
    "compile": {"errors", "files", "machine"},
    "engine": {"compile", "errors", "machine"},
    "run_directory": {"errors"},
    "ops": {"engine", "compile", "errors", "machine"},
    "nn": {"ops", "engine", "errors"},  # tensors only: never a graph, a config or a file
    "data": BOTTOM,
    "models": {"nn", "ops", *BOTTOM},
    "deploy": {"models", "data", "nn", "ops", *BOTTOM},
    "interop": {"deploy", "models", "data", "nn", "ops", *BOTTOM},
    "evaluation": {"deploy", "models", "data", "nn", "ops", *BOTTOM},
    "training": {"evaluation", "deploy", "models", "data", "nn", "ops", *BOTTOM},
    "integrations": {"deploy", "models", "data", "nn", "ops", *BOTTOM},
    "properties": {"integrations", "deploy", "models", "data", "nn", "ops", *BOTTOM},
    "cli": {
        "properties",
        "evaluation",
        "training",
        "integrations",
        "interop",
        "deploy",
        "models",
        "data",
        "ops",
        *BOTTOM,
    },
    "equipot": {"integrations", "machine"},  # its own __init__.py, which is the public interface
}
HARMLESS = {"equipot.__version__"}


def imported_modules(tree: ast.AST, package: str) -> list[str]:
    """Dotted names of every import in a file of ``package``, wherever it stands (in functions too)."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join([*base, module]).rstrip(".")
            # `from equipot import config` names a part in the import list, not in the module.
            modules += [f"equipot.{a.name}" for a in node.names] if module == "equipot" else [module]
    return modules


def part_of(module: str) -> str:
    """``equipot.nn.radial`` -> ``nn``; ``equipot`` and names it defines -> ``equipot``."""
    names = module.split(".")
    exists = len(names) > 1 and ((SOURCE / names[1]).is_dir() or (SOURCE / f"{names[1]}.py").is_file())
    return names[1] if exists else "equipot"


def upward_imports(path: Path, source: str) -> list[str]:
    """One line for each import in ``source``, the text of the file at ``path``, that breaks the order."""
    relative = path.relative_to(SOURCE.parent).with_suffix("")
    own_part = "equipot" if relative.parts[1] == "__init__" else relative.parts[1]
    if own_part not in ALLOWED:
        return [f"{path.name}: '{own_part}' has no place in the layer order; add it to ALLOWED"]
    package = ".".join(relative.parts[:-1])
    targets = [m for m in imported_modules(ast.parse(source), package) if m.split(".")[0] == "equipot"]
    return [
        f"{relative}: {own_part} imports {target}"
        for target in targets
        if part_of(target) not in ALLOWED[own_part] | {own_part} and target not in HARMLESS
    ]


def test_no_file_imports_upwards():
    files = sorted(SOURCE.rglob("*.py"))
    assert len(files) > 10, "the source folder was not found"
    broken = [line for file in files for line in upward_imports(file, file.read_text())]
    assert not broken, "\n".join(broken)


def test_order_has_no_cycle():
    """The allowed imports themselves go one way."""
    remaining = {part: set(targets) for part, targets in ALLOWED.items()}
    while remaining:
        free = [part for part, targets in remaining.items() if not targets & remaining.keys()]
        assert free, f"a cycle among {sorted(remaining)}"
        for part in free:
            del remaining[part]


def modules_imported(source: str, package: str, modules: set[str]) -> set[str]:
    """Those of ``modules`` that a file of ``package`` imports, a name imported from a package included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            [whole, *_] = names = imported_modules(ast.Module([node], []), package)
            inner = [f"{whole}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else []
            submodules = modules.intersection(inner)
            found |= submodules or modules.intersection(names)
    return found


def find_cycle(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, each the next one; empty if there are none."""
    remaining = {module: targets & imports.keys() for module, targets in imports.items()}
    while free := [module for module, targets in remaining.items() if not targets & remaining.keys()]:
        for module in free:
            del remaining[module]
    ring = list(remaining)[:1]  # each of them imports another one that remains
    while ring and ring[-1] not in ring[:-1]:
        ring.append(min(remaining[ring[-1]] & remaining.keys()))
    return ring[ring.index(ring[-1]) :] if ring else []


def test_no_modules_import_each_other():
    """Wherever the import stands: in a function or for the type checker, too."""
    files = {}
    for file in SOURCE.rglob("*.py"):
        *folders, name = file.relative_to(SOURCE.parent).with_suffix("").parts
        files[".".join(folders if name == "__init__" else [*folders, name])] = file, ".".join(folders)
    # The package itself hands out names of many modules; what they take from it is its version.
    modules = files.keys() - {"equipot"}
    imports = {m: modules_imported(files[m][0].read_text(), files[m][1], modules) - {m} for m in modules}
    assert sum(map(len, imports.values())) > 100, "the imports were not found"
    cycle = find_cycle(imports)
    assert not cycle, " imports ".join(cycle)


@pytest.mark.parametrize(
    ("imports", "ring"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set()}, {"b", "c"}),
        ({"a": {"a"}}, {"a"}),
        ({"a": {"b", "c"}, "b": {"c"}, "c": {"elsewhere"}}, set()),
    ],
)
def test_checker_finds_a_ring(imports, ring):
    assert set(find_cycle(imports)) == ring


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("nn/radial.py", "from equipot.models.nequip import NequIP"),
        ("nn/radial.py", "import equipot.graph"),
        ("data/dataset.py", "from equipot.models import potential"),
        ("models/build.py", "from ..data.statistics import Statistics"),
        ("integrations/ase.py", "def f():\n    from equipot import training"),
        ("deploy/load.py", "from equipot import EquipotCalculator"),
        ("units.py", "from equipot.config.load import load_config"),
        ("evaluation/run.py", "if True:\n    from equipot.training.loss import Loss"),
        ("novel.py", "import math"),
    ],
)
def test_checker_sees_an_upward_import(file, statement):
    """Deliberate faults: each of these must be reported."""
    assert upward_imports(SOURCE / file, f"import torch\n{statement}\n")


@pytest.mark.parametrize(
    ("file", "statement"),
    [
        ("nn/radial.py", "from equipot.ops.reference import contract"),
        ("nn/radial.py", "from .mlp import MLP"),
        ("cli/__init__.py", "from equipot import __version__"),
        ("deploy/load.py", "from equipot.models.predict import predict"),
        ("deploy/export.py", "from equipot import __version__"),
        ("__init__.py", "from equipot.integrations.ase import EquipotCalculator"),
        ("__init__.py", "from equipot.machine import keep_memory"),
    ],
)
def test_checker_accepts_a_downward_import(file, statement):
    assert upward_imports(SOURCE / file, statement) == []
