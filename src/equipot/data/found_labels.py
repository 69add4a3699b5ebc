"""What is said about the labels of files: which are missing, what could be meant, what is not used."""

import difflib
import logging
from collections.abc import Iterable, Iterator, Mapping

import ase
import numpy as np

from equipot.config.data import LabelsConfig, Source
from equipot.data.columns import Columns
from equipot.data.frames import Frame, named_values
from equipot.data.pool import Pool
from equipot.data.text import KEY_ADVICE, WITHOUT_ENERGIES, YAML_ADVICE, counted
from equipot.errors import DataError
from equipot.quantities import BASIC, KEYS, LABELS, QUANTITIES, USUAL, given_quantities

logger = logging.getLogger("equipot")

_DEFAULT = LabelsConfig()


def check_labels(
    source: Source,
    pool: Pool,
    candidates: dict[str, set[str]],
    required: Iterable[str] = USUAL,
    need_any: bool = False,
    advice: str = YAML_ADVICE,
) -> None:
    """Check what labels the frames of a source have; arguments, messages and errors as ``read_frames``."""
    if need_any and not pool.columns.has.any():
        raise DataError(_no_label_at_all(source.labels, pool.files, candidates, advice))
    for kind in LABELS:
        names = source.labels.names(kind)
        if names and kind not in given_quantities():
            _check_label(kind, names, pool, candidates, kind in set(required), advice)
    unread = unread_labels(source.labels, pool.columns, candidates)
    if unread:
        logger.info(
            "%s: not read, though it looks like a label: %s.", ", ".join(pool.files), ", ".join(unread)
        )


def unread_labels(
    labels: LabelsConfig, columns: Columns, candidates: Mapping[str, Iterable[str]]
) -> list[str]:
    """Names that mean what another name was read for, and weights that are not read, with their meaning."""
    read = {*labels.model_dump().values(), "free_energy"}  # the last is ASE's, beside energy
    weights = {key.weight for key in KEYS.values()}
    found = {}
    for quantity in QUANTITIES.values():
        for key in quantity.keys if columns.known(quantity.name).any() else ():
            found |= {n: key.name for n in candidates.get(key.name, ()) if n not in read and key.means(n)}
        for name in candidates.get(quantity.name, ()):
            if labels.weight is not None and "weight" in name.lower() and name not in read | weights:
                found[name] = "weight"
    return [f"'{name}' ({meaning})" for name, meaning in sorted(found.items())]


def numbers_beside(structure: ase.Atoms | Frame, labels: LabelsConfig) -> set[str]:
    """Names of what a structure has beside positions, marks, labels that are read and their weights."""
    if isinstance(structure, Frame):
        return set()
    read = {*labels.model_dump().values(), *(key.weight for key in KEYS.values())}
    read |= {"numbers", "positions", "tags", "free_energy", "energies", "stresses", *BASIC}
    found = named_values(structure)
    return {name for name in found if np.asarray(found[name]).dtype.kind in "iuf"} - read


def _check_label(
    kind: str,
    names: Mapping[str, str],
    pool: Pool,
    candidates: Mapping[str, set[str]],
    required: bool,
    advice: str,
) -> None:
    files, columns, quantity = pool.files, pool.columns, QUANTITIES[kind]
    molecules = ~columns.isolated if not columns.isolated.all() else np.ones(len(pool), dtype=bool)
    lacking = molecules & ~columns.known(kind)
    unused = columns.label_weights[:, LABELS.index(kind)] == 0
    name = label_name(names)
    if kind != "energy" and columns.isolated.all():
        return  # their energies are all that is wanted of them
    if lacking.sum() == molecules.sum():
        found = found_names(kind, names, candidates, advice)
        if unused.any() and not required:
            return  # which was said
        # A command has no option to do without an output, and a training says so in its configuration.
        dispensable = kind not in BASIC and advice == KEY_ADVICE
        if required or (names != _DEFAULT.names(kind) and not dispensable):
            whose = " whose weight is not 0" if unused.any() else ""
            raise DataError(
                f"{', '.join(files)}: no frame has a label {name} for the {kind}{whose}. {found}"
                + (WITHOUT_ENERGIES if kind in USUAL and advice == YAML_ADVICE else "")
            )
        periodic = columns.periodic[molecules].any()
        offered = any(candidates.get(key.name) for key in quantity.keys)
        expected = quantity.usual or dispensable
        if not (periodic if quantity.needs_volume else expected or offered):
            return  # nothing there could have it
        logger.info(
            "%s: no frame has a label %s, so no %s %s read.%s",
            ", ".join(files), name, kind, is_or_are(kind), f" {found}" if offered else "",
        )  # fmt: skip
    elif (lacking & ~unused).any():
        lacking &= ~unused
        first, counts = pool[int(lacking.argmax())], (lacking.sum(), molecules.sum())
        logger.warning(
            "%s: %d of %d frames have no %s label %s (the first is %s); their other labels are used.",
            files[0] if len(files) == 1 else f"{len(files)} files", *counts, kind, name,
            f"frame {first.index}, counted from 0" if len(files) == 1 else first.where,
        )  # fmt: skip


def _no_label_at_all(labels: LabelsConfig, files: list[str], candidates: Mapping, advice: str) -> str:
    lines = [f"{', '.join(files)}: no frame has any of the labels looked for."]
    for kind in LABELS:
        names = labels.names(kind)
        if names and kind not in given_quantities():
            name = label_name(names)
            lines.append(f"  {kind}: no {name}. {found_names(kind, names, candidates, advice)}")
    return "\n".join(lines)


def found_names(
    kind: str, names: Mapping[str, str], candidates: Mapping[str, Iterable[str]], advice: str
) -> str:
    """The names that could be meant, the nearest of them, and what to do."""
    own, *others = QUANTITIES[kind].keys
    meant, rest = [], []
    for name in sorted(candidates.get(kind, ())):
        (meant if own.means(name) else rest).append(name)
    listed = [", ".join(meant)] if meant else []
    listed += [f"of fitting shape only: {', '.join(rest)}"] if rest else []
    found = f"Names with {QUANTITIES[kind].looks_like} there: {'; '.join(listed) or 'none'}."
    if kind not in BASIC and advice == KEY_ADVICE:  # which is no option
        advice = "An output is read by the name that the training gave it: rename it in the files."
    sought = names.get(kind, kind).lower()
    near = difflib.get_close_matches(sought, [name.lower() for name in meant], n=1, cutoff=0.5)
    nearest = next((name for name in meant if name.lower() in near), None)
    found += f" Did you mean '{nearest}'?" if nearest else ""
    for key in others:
        alike = sorted(name for name in candidates.get(key.name, ()) if key.means(name))
        if alike:
            found += (
                f" What means a {key.name}: {', '.join(alike)}. {advice.format(kind=key.name).split(',')[0]}."
            )
            if not meant:
                return found
    return f"{found} {advice.format(kind=kind)}"


def report_weights(source: Source, pool: Pool) -> None:
    """Say how many frames and labels have a weight of their own, and which labels are not used."""
    for level, remark in remarks(source.labels, pool.columns, source.weight):
        logger.log(level, "%s: %s", ", ".join(pool.files), remark)


def remarks(labels: LabelsConfig, columns: Columns, weight: float = 1.0) -> Iterator[tuple[int, str]]:
    """What ``report_weights`` says, with its level; ``weight``: that of the source."""
    of = f"of {counted(len(columns), 'frame')}"
    weighted = [(labels.weight, columns.weight / weight, "")]
    for kind, own in zip(LABELS, columns.label_weights.T, strict=True):
        quantity, names = QUANTITIES[kind], labels.names(kind)
        unused = (own == 0) & ~columns.periodic & quantity.needs_volume
        name = " or ".join(key.weight for key in quantity.keys if key.name in names)
        weighted.append((name, np.where(unused, 1.0, own), f", {kind} not used where it is 0"))
        if unused.any():
            yield (
                logging.WARNING,
                f"{unused.sum()} {of} are not periodic in all three directions, so that their {kind} "
                f"({label_name(names)}) is not defined and is left out; their other labels are used. (To "
                f"read none: data.labels.{kind}: null, or --{kind}-key none.)",
            )
    texts = []
    for name, own, unused in weighted:
        count = (own != 1).sum()
        if count:
            first = f"{count} {of} have a weight '{name}' of their own in the loss"
            spread = f"{own.min():g} to {own.max():g}{'' if own.all() else unused}"
            texts.append(f"{f'{count} {name!r}' if texts else first} ({spread})")
    if texts:
        yield logging.INFO, f"{', '.join(texts)}."


def label_name(names: Mapping[str, str]) -> str:
    """Names of one label for a message."""
    return " or ".join(f"'{name}'" for name in names.values())


def is_or_are(kind: str) -> str:
    """For a message about a label."""
    return "are" if kind.endswith("es") else "is"
