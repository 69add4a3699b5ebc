"""The table in Markdown, with what matters at a glance first."""

from collections.abc import Iterator

from driver import figure

# Columns that the table leaves out: the file of results has them.
_NOT_PRINTED = {"ok", "each ms", "tolerance"}


def table(machine: dict, results: list[dict]) -> str:
    """Everything that was found, for a person."""
    lines = ["# equipot on a GPU" if machine.get("device") != "cpu" else "# The GPU check, run on a CPU", ""]
    lines += [", ".join(f"{key} {figure(value)}" for key, value in machine.items() if key != "device")]
    lines.insert(2, f"**{machine.get('device', 'no worker could be started')}**\n")
    lines += ["", "## At a glance", "", *(f"- {line}" for line in glance(results)), ""]
    for result in results:
        lines += [f"## {result['title']}", "", *_part(result), ""]
    return "\n".join(lines)


def failures(results: list[dict]) -> list[str]:
    """Wrong results and failed cases, one line each; empty if all is well."""
    found = []
    for result in results:
        for case in result["cases"]:
            if "error" in case:
                found.append(f"{result['title']}, {case['case']}: {case['error']}")
            for row in case["rows"]:
                if row.get("ok") is False:
                    said = {key: value for key, value in row.items() if key != "ok"}
                    found.append(f"WRONG: {result['title']}, {case['case']}: {_in_words(said)}")
    return found


def glance(results: list[dict]) -> Iterator[str]:
    """One line for each thing that a reader wants to know first."""
    rows = {result["part"]: _rows(result) for result in results}
    judged = [row for part in rows.values() for row in part if "ok" in row]
    bad = failures(results)
    good = sum(row["ok"] for row in judged)
    yield f"{good} of {len(judged)} comparisons right" + ("" if bad else ", nothing failed")
    yield from (f"**{line}**" for line in bad)
    yield from (f"{r['title']}: cut short, {r['note']}" for r in results if r["status"] == "cut short")
    yield from _about_launches(rows.get("launches", []))
    yield from _about_steps(rows.get("steps", []))
    for row in rows.get("edges", []):
        worst, median = figure(row["worst ms"]), figure(row["median ms"])
        yield f"edges that change, executor {row['executor']}: worst call {worst} ms, median {median} ms"
    yield from _about_layers(rows.get("layers", []))
    for row in rows.get("training", []):
        yield f"training step, {row['model']}, {row['molecules']} molecules: {figure(row['wall ms'])} ms"
    for row in rows.get("peers", []):
        if "peer/equipot" in row:
            what = f"{row['program']}, {row['model']}, {row['atoms']:,} atoms of {row['structure']}"
            yield f"{what}: {figure(row['peer/equipot'])} times equipot's {figure(row['equipot ms'])} ms"
    missing = [row["note"] for row in rows.get("peers", []) + rows.get("lammps", []) if "note" in row]
    yield from dict.fromkeys(note for note in missing if note.startswith("not installed"))


def _about_launches(rows: list[dict]) -> Iterator[str]:
    for row in rows:
        said = f"{row['evaluation']}, {row['atoms']:,} atoms: {row['aten operators']:,} operators of torch"
        if "launches" in row:
            said += f", {row['launches']:,} launches, {row['waits']:,} waits for the GPU"
        yield said


def _about_steps(rows: list[dict]) -> Iterator[str]:
    """The largest system of each kind of structure and way, for the model that ran through all sizes."""
    largest = {}
    for row in rows:
        if row["model"] == "l2 parity" and "µs/atom" in row:
            largest[row["structure"], row["how"]] = row
    for (structure, how), row in largest.items():
        memory = f", {figure(row['peak kB/atom'])} kB per atom" if "peak kB/atom" in row else ""
        host = f", host busy {100 * row['host ms'] / row['wall ms']:.0f} %" if memory else ""
        what = f"{structure}, {row['atoms']:,} atoms, {how}"
        yield f"{what}: {figure(row['µs/atom'])} µs per atom{memory}{host}"


def _about_layers(rows: list[dict]) -> Iterator[str]:
    """A middle layer of each model and structure."""
    for row in rows:
        if row["layer"] == 2:
            share = f", {row['of the copy']} of the copy's GB/s" if "of the copy" in row else ""
            what = f"{row['model']}, {row['structure']}, layer 2, {row['pass']}"
            yield f"{what}: {figure(row['ns/edge'])} ns per edge{share}"


def _part(result: dict) -> Iterator[str]:
    took = f", {result['seconds']:.0f} s" if "seconds" in result else ""
    yield f"{result['status']}{took}" + (f": {result['note']}" if "note" in result else "")
    errors = [case for case in result["cases"] if "error" in case]
    rows = _rows(result)
    if rows:
        columns = [key for key in dict.fromkeys(k for row in rows for k in row) if key not in _NOT_PRINTED]
        columns = sorted(columns, key=lambda key: key == "note")  # last
        judged = any("ok" in row for row in rows)
        columns = ["right", *columns] if judged else columns
        yield ""
        yield "| " + " | ".join(columns) + " |"
        yield "|" + " --- |" * len(columns)
        for row in rows:
            right = {True: "yes", False: "**WRONG**", None: ""}[row.get("ok")]
            cells = [right if key == "right" else figure(row.get(key)) for key in columns]
            yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"
    for case in errors:
        yield ""
        yield f"**{case['case']} failed**: {case['error']}"


def _rows(result: dict) -> list[dict]:
    return [row for case in result["cases"] for row in case["rows"]]


def _in_words(row: dict) -> str:
    return ", ".join(f"{key} {figure(value)}" for key, value in row.items())
