"""The peers of the check for a machine without network: NequIP, and OpenEquivariance, whose sources compile
themselves there (nvcc) at the first import.
"""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

NEQUIP = ["nequip==0.19.1", "hydra-core==1.3.8", "omegaconf==2.3.1", "pybind11==3.0.4"]
# What both import beside torch, NumPy and what the check brings anyway; pinned for equipot.
PINNED = [
    *("certifi", "charset-normalizer", "idna", "lightning", "lightning-utilities", "lmdb", "ninja"),
    *("requests", "torchmetrics", "urllib3"),
]
ANTLR = "antlr4-python3-runtime==4.9.3"  # omegaconf's; there are sources only, in Python alone
OPEN_EQUIVARIANCE = "openequivariance==0.7.0"


def add_peers(pinned: list[str], folder: Path, download: Callable[[list[str], Path], None]) -> None:
    """Fill ``folder`` with wheels. ``download`` fetches some that fit the other machine."""
    download([*NEQUIP, *pinned], folder)
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), ANTLR)
    with tempfile.TemporaryDirectory() as scratch:
        _pip("download", "--no-deps", "--no-binary=openequivariance", "--dest", scratch, OPEN_EQUIVARIANCE)
        (archive,) = Path(scratch).glob("*.tar.gz")
        wheel_of_sources(archive, folder)


def wheel_of_sources(archive: Path, folder: Path) -> Path:
    """A wheel of the package's own files: what pip would build would fetch another torch."""
    name, _, number = archive.name.removesuffix(".tar.gz").rpartition("-")
    info = f"{name}-{number}.dist-info"
    wheel = folder / f"{name}-{number}-py3-none-any.whl"
    with tarfile.open(archive) as source, zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as target:
        names = {}
        for member in source.getmembers():
            inside = member.name.partition("/")[2]
            if member.isfile() and inside.startswith(f"{name}/"):
                names[inside] = source.extractfile(member).read()
            elif inside == "PKG-INFO":
                names[f"{info}/METADATA"] = source.extractfile(member).read()
        names[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        record = "".join(f"{name},,\n" for name in [*names, f"{info}/RECORD"])
        for inside, content in {**names, f"{info}/RECORD": record.encode()}.items():
            target.writestr(inside, content)
    return wheel


def _pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"pip {arguments[0]} {arguments[-1]} failed:\n{done.stderr[-1000:]}")
