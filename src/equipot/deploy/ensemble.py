"""Ensembles: folders of members, and how much the members disagree.

Training makes ``RUN/member_0``, ``RUN/member_1``, ...; deployment a folder with ``member_0.pt`` and so on.
The members have the same species and cutoff; their mean is the ensemble's prediction.
"""

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from equipot.deploy.load import DeployedModel, load_deployed
from equipot.deploy.metadata import Metadata, describe_tables
from equipot.deploy.uncertainty import describe_uncertainty
from equipot.errors import ConfigError, ModelFileError
from equipot.files import refuse_to_replace

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("equipot")

_MEMBER = re.compile(r"member_(\d+)(\.pt)?")


def member_name(index: int) -> str:
    """Such as ``member_0``: the run directory of a member; with ``.pt`` its deployed file."""
    return f"member_{index}"


def find_members(path: str | Path) -> list[Path]:
    """The members in a folder, in order; empty if ``path`` is no ensemble.

    Raises:
        ModelFileError: a member is missing between others, or there is only one.
    """
    path = Path(path)
    entries = path.iterdir() if path.is_dir() else ()
    found = {int(match[1]): entry for entry in entries if (match := _MEMBER.fullmatch(entry.name))}
    if not found:
        return []
    missing = sorted(set(range(max(found) + 1)) - found.keys())
    if missing:
        raise ModelFileError(
            f"'{path}' holds {', '.join(found[i].name for i in sorted(found))}, but no "
            f"{member_name(missing[0])}: it is not the whole ensemble."
        )
    if len(found) == 1:
        raise ModelFileError(f"'{path}' holds one member only: an ensemble has two at least.")
    return [found[index] for index in sorted(found)]


def load_members(
    models: str | Path | DeployedModel | Sequence[str | Path | DeployedModel],
    device: "str | torch.device",
    engine: str = "auto",
) -> list[DeployedModel]:
    """Deployed models: of one file, of several, or of a folder written by ``deploy_ensemble``.

    Raises:
        ModelFileError: none, or models that do not belong together; or as `load_deployed`.
        ConfigError: something else than these.
        DeviceError: as `load_deployed`.
    """
    if isinstance(models, str | Path):
        models = find_members(models) or [models]
    elif isinstance(models, DeployedModel):
        models = [models]
    if not isinstance(models, Sequence) or not all(isinstance(m, str | Path | DeployedModel) for m in models):
        raise ConfigError(f"Expected a model file, a folder, or a list of model files, found {models!r}.")
    loaded = [m if isinstance(m, DeployedModel) else load_deployed(m, device, engine) for m in models]
    if not loaded:
        raise ModelFileError("An ensemble needs two model files at least; the list is empty.")
    refuse_strangers([(m.path, m.metadata.species, m.metadata.cutoff, m.output_names) for m in loaded])
    return loaded


def refuse_strangers(members: Sequence[tuple[Path, Sequence[str], float, Sequence[str]]]) -> None:
    """Raise ModelFileError unless all members (file, species, cutoff in Å, outputs) have the same."""
    first, species, cutoff, outputs = members[0]
    for path, other_species, other_cutoff, other_outputs in members[1:]:
        if set(other_outputs) != set(outputs):
            one, other = (", ".join(names) or "none" for names in (other_outputs, outputs))
            raise ModelFileError(
                f"Outputs beside the energy must be the same of all members of an ensemble, but those of "
                f"{path} ({one}) are not those of {first} ({other})."
            )
        if (list(other_species), other_cutoff) != (list(species), cutoff):
            one, other = (
                f"{file} ({' '.join(symbols)}, {length:g} Å)"
                for file, symbols, length in ((path, other_species, other_cutoff), (first, species, cutoff))
            )
            raise ModelFileError(
                f"Species and cutoff of an ensemble's members must be the same, but those of {one} are not "
                f"those of {other}."
            )


def deploy_any(
    run: Path,
    output: Path | None = None,
    tables: bool = True,
    level: str | None = None,
    uncertainty: bool = False,
    config: Path | None = None,
    overwrite: bool = True,
) -> tuple[Path, str]:
    """Deploy a run directory or a checkpoint as a file, or all of an ensemble into a folder.

    Returns what was written (by default ``model.pt`` or the folder ``model``) and what to say of it.
    Raises as `find_checkpoint`, `deploy` and `deploy_ensemble`, ModelFileError for an uncertainty of an
    ensemble, and ConfigError for files that are there, without ``overwrite``, or cannot be written.
    """
    from equipot.deploy.checkpoint import find_checkpoint  # these need torch, and reading does not
    from equipot.deploy.export import deploy

    members = find_members(run)
    if members and uncertainty:
        raise ModelFileError(
            f"'{run}' is an ensemble, whose members say by their disagreement how uncertain they are; an "
            f"uncertainty is that of a single model: deploy one of them, such as {members[0]}."
        )
    settings = {"tables": tables, "level": level, "config": config}
    if members:
        output = output or Path("model")
        for member in members if output.is_dir() else ():
            refuse_to_replace(output / f"{member.name}.pt", overwrite)
        deploy_ensemble([find_checkpoint(member) for member in members], output, **settings)
        return output, f"{len(members)} members"
    output = output or Path("model.pt")
    if not output.is_dir():  # which `deploy` refuses
        refuse_to_replace(output, overwrite, inputs=[run, find_checkpoint(run)])
    metadata = deploy(find_checkpoint(run), output, uncertainty=uncertainty, **settings)
    said = f"radial functions: {describe_tables(metadata.tables)}"
    if metadata.uncertainty:
        said += f"; uncertainty: {describe_uncertainty(metadata.uncertainty)}"
    return output, said


def deploy_ensemble(
    checkpoints: Sequence[Path],
    output: Path,
    tables: bool = True,
    level: str | None = None,
    config: Path | None = None,
) -> list[Metadata]:
    """Deploy every member into the folder ``output``, each verified as any deployed file.

    Args:
        checkpoints: one for each member.
        output: a folder, made if need be.
        tables, level, config: as for `deploy`.

    Raises:
        ModelFileError: ``output`` is a file, or holds members beyond these; or as `deploy`.
    """
    from equipot.deploy.export import deploy

    if output.exists() and not output.is_dir():
        raise ModelFileError(f"'{output}' is a file: an ensemble becomes a folder with a file per member.")
    names = {f"{member_name(index)}.pt" for index in range(len(checkpoints))}
    if output.is_dir():
        others = sorted(p.name for p in output.iterdir() if _MEMBER.fullmatch(p.name) and p.name not in names)
        if others:
            raise ModelFileError(
                f"'{output}' holds {', '.join(others)}, which would become part of this ensemble of "
                f"{len(checkpoints)}: choose another folder."
            )
    is_new = not output.exists()
    output.mkdir(parents=True, exist_ok=True)
    written = []
    try:
        for index, checkpoint in enumerate(checkpoints):
            logger.info("Deploying %s", member_name(index))
            file = output / f"{member_name(index)}.pt"
            written.append(deploy(checkpoint, file, tables=tables, level=level, config=config))
    finally:
        if is_new and not written:
            output.rmdir()
    return written


def deviation(values: NDArray) -> NDArray:
    """Standard deviation over members, with M − 1 in the denominator.

    (M, n) → (n,): of numbers. (M, n, 3) → (n,): of vectors, √(Σ_m |v_m − v̄|² / (M − 1)).
    """
    squares = np.var(values, axis=0, ddof=1)
    return np.sqrt(squares.sum(axis=-1) if squares.ndim > 1 else squares)
