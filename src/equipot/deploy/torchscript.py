"""Write a potential as one verified TorchScript file."""

import copy
import datetime
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from equipot import __version__
from equipot.deploy.capsule import Capsule, Deviation, compare_capsule, make_capsule
from equipot.deploy.jit import quiet_jit, steady_execution
from equipot.deploy.metadata import TRAINING_STATE, Metadata
from equipot.deploy.rigidity import Measure, add_uncertainty
from equipot.deploy.structure import Structure
from equipot.deploy.tables import tabulate
from equipot.errors import ModelFileError
from equipot.files import atomic_write
from equipot.models.potential import Potential
from equipot.quantities import facts_of_output


def write_torchscript(
    potential: Potential,
    output: str | Path,
    structures: Sequence[Structure],
    *,
    source: str,
    atomic_energies: Sequence[float],
    tables: bool = True,
    training_state: bytes | None = None,
    measure: Measure | None = None,
    **facts: Any,
) -> Metadata:
    """Write ``potential`` to ``output`` and verify the file before it gets that name.

    ``structures`` become the self-check capsule, ``source`` says where they come from; ``tables``: see
    :func:`equipot.deploy.tables.tabulate`; ``training_state``: what a training can start from; ``measure``:
    the uncertainty to add;
    ``atomic_energies`` (eV) and ``facts``: fields of the `Metadata`. The file is loaded in a fresh process
    and must reproduce the eager model, without tables, there. On any error nothing is left behind and an
    older ``output`` stays as it was.

    Raises ModelFileError.
    """
    output = Path(output)
    if output.is_dir():
        raise ModelFileError(f"{output} is a folder. Name the file to write, such as {output}/model.pt.")
    # A copy on the CPU: scripting must not touch the caller's model. Constant parameters leave nothing but
    # edge_vec to differentiate by.
    potential = copy.deepcopy(potential).cpu().eval().requires_grad_(False)
    try:
        capsule = make_capsule(potential, structures, source)
    except ValueError as error:
        raise ModelFileError(f"Not deployed: {error}. The training may have diverged.") from None
    facts["tables"] = tabulate(potential, structures) if tables else {}
    program = potential.program()
    if measure is not None:
        facts["uncertainty"] = add_uncertainty(program, measure, structures, output)
    metadata = _describe(potential, capsule, atomic_energies=tuple(atomic_energies), **facts)
    with quiet_jit(), atomic_write(output) as temporary:
        module = torch.jit.script(potential)
        with steady_execution():
            deviations = compare_capsule(module, capsule, metadata.dtype, metadata.atomic_energies)
        _require(deviations, "TorchScript")
        state = {} if training_state is None else {TRAINING_STATE: training_state}
        _save(module, metadata.to_strings() | state, program.files() if program else {}, temporary)
        _require(_deviations_in_fresh_process(temporary), "the file, loaded in a fresh process,")
    return metadata


def _save(
    module: torch.jit.ScriptModule,
    extra_files: dict[str, str | bytes],
    engine_files: dict[str, bytes],
    path: Path,
) -> None:
    # By way of memory: torch names the archive's folder after the (temporary) file, and does not say plainly
    # that the disk is full.
    buffer = io.BytesIO()
    torch.jit.save(module, buffer, _extra_files=extra_files)
    with zipfile.ZipFile(buffer, "a") as archive:
        folder = archive.namelist()[0].partition("/")[0]
        for name, content in engine_files.items():
            archive.writestr(f"{folder}/{name}", content)
    path.write_bytes(buffer.getbuffer())


def weights_digest(module: torch.nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of all parameters.

    Without buffers: TorchScript does not keep which of them are persistent.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.named_parameters()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _describe(potential: Potential, capsule: Capsule, **given) -> Metadata:
    num_exchanges = int(potential.num_exchanges)
    return Metadata(
        species=tuple(potential.species),
        cutoff=float(potential.cutoff),
        # One exchange precedes each layer but the first.
        interaction_range=float(potential.cutoff) * (1 + num_exchanges),
        num_exchanges=num_exchanges,
        widest_exchange=int(potential.widest_exchange),
        dtype=str(potential.dtype).removeprefix("torch."),
        weights_sha256=weights_digest(potential),
        outputs={name: facts_of_output(name) for name in potential.output_names},
        energy=potential.has_energy,
        derivatives=tuple(potential.derivative_names),
        field=dict(potential.field_outputs),
        capsule=capsule.to_json(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        equipot_version=__version__,
        torch_version=torch.__version__,
        **given,
    )


def _deviations_in_fresh_process(path: Path) -> list[Deviation]:
    """Load and evaluate ``path`` where the eager model has never been."""
    command = [sys.executable, "-m", "equipot.deploy.verify", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = run.stdout.splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        reason = run.stderr.strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
        message = f"Not deployed: the file could not be verified in a fresh process ({reason[0]})."
        raise ModelFileError(message) from None
    if "error" in answer:
        raise ModelFileError(f"Not deployed: the file fails in a fresh process: {answer['error']}")
    return [Deviation(**deviation) for deviation in answer["deviations"]]


def _require(deviations: Sequence[Deviation], what: str) -> None:
    failed = [deviation for deviation in deviations if not deviation.passed]
    if failed:
        found = "; ".join(map(str, failed))
        raise ModelFileError(f"Not deployed: {what} does not reproduce the eager model: {found}.")
