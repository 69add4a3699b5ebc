"""Tables, JSON, plots and predictions."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from equipot.config import UnitsConfig
from equipot.config.data import Parsing
from equipot.errors import DataError
from equipot.evaluation import run
from equipot.evaluation.metrics import error_groups, error_rows
from equipot.evaluation.plots import (
    MANY_POINTS,
    TOO_MANY_POINTS,
    _draw_histogram,
    _draw_parity,
    _panel,
    parity_panels,
    plot_parity,
    point_density,
)
from equipot.evaluation.predict import predict_frames
from equipot.evaluation.report import MAX_GROUPS, as_dict, print_report, short_names, write_evaluation
from equipot.evaluation.run import write_predictions
from equipot.quantities import STRESS
from equipot.units import energy_factor, length_factor


@pytest.fixture
def comparison(frames, morse_model):
    return predict_frames(morse_model(fault=1.1), frames)


def test_table_says_how_much_was_counted(comparison):
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(comparison, console)
    text = console.export_text()
    for expected in (
        "7 frames",
        "51 atoms",
        "24 atoms",
        "6 frames",
        "meV/atom",
        "meV/Å³",
        "GPa",
        "Worst frames",
    ):
        assert expected in text


def printed(comparison) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(comparison, console)
    return console.export_text()


def test_groups_share_one_table(comparison):
    """Two files: a line for each, with the errors of its own frames."""
    sources = [s._replace(file=f"/data/part{i % 2}.xyz") for i, s in enumerate(comparison.sources)]
    mixed = replace(comparison, sources=sources)
    _, odd = error_groups(mixed)
    assert odd.name == "/data/part1.xyz"
    assert odd.rows == error_rows(mixed.select(np.arange(7) % 2 == 1))
    line = next(text for text in printed(mixed).splitlines() if text.startswith("│ part1.xyz"))
    assert f"{odd.rows[0].mae:.1f} / {odd.rows[0].rmse:.1f}" in line


def test_long_tables_of_groups_are_cut_and_names_are_no_markup(comparison):
    many = comparison.select(np.arange(7) == 0)
    repeated = MAX_GROUPS + 2
    many = replace(
        many,
        **{
            name: np.concatenate([getattr(many, name)] * repeated)
            for name in vars(many)
            if isinstance(getattr(many, name), np.ndarray) and name != "offsets"
        },
        **{
            name: {kind: np.concatenate([value] * repeated) for kind, value in getattr(many, name).items()}
            for name in ("values", "reference")
        },
        sources=[many.sources[0]._replace(config_type=f"[red]{i}") for i in range(repeated)],
    )
    text = printed(many)
    assert "[red]0" in text and f"[red]{MAX_GROUPS}" not in text
    assert "and 2 more" in text
    assert len(as_dict(many, "model.pt")["groups"]["config_type"]) == repeated


def test_files_are_named_by_what_tells_them_apart():
    assert short_names(["/a/b/x.xyz", "/a/c/y.xyz"]) == {"/a/b/x.xyz": "x.xyz", "/a/c/y.xyz": "y.xyz"}
    assert short_names(["/a/b/x.xyz", "/a/c/x.xyz"]) == {"/a/b/x.xyz": "b/x.xyz", "/a/c/x.xyz": "c/x.xyz"}


def test_json_has_the_numbers_of_the_table(comparison, tmp_path):
    write_evaluation(comparison, tmp_path / "model.pt", tmp_path / "deep")
    content = json.loads((tmp_path / "deep" / "errors.json").read_text(encoding="utf-8"))
    assert content == as_dict(comparison, tmp_path / "model.pt")
    assert set(content["errors"]) == {"energy", "forces", "forces_Cu", "forces_Ag", "stress", "stress_GPa"}
    expected = 100 * np.abs(comparison.reference["forces"]).mean()  # a tenth, in meV
    assert content["errors"]["forces"]["mae"] == pytest.approx(expected, rel=1e-6)
    assert content["errors"]["forces"]["atoms"] == 51
    assert {name: len(frames) for name, frames in content["worst_frames"].items()} == {
        "forces": 7,
        "energy": 7,
    }


def test_parity_panels_leave_out_what_is_not_labelled(comparison):
    assert [p.title for p in parity_panels(comparison)] == ["Energy", "Forces", "Stress"]
    cluster = comparison.select(np.arange(7) == 6)
    assert [p.title for p in parity_panels(cluster)] == ["Energy", "Forces"]
    assert parity_panels(comparison)[1].error.size == 3 * 51
    assert parity_panels(comparison)[2].error.size == 9 * 6


def test_plot_is_written(comparison, tmp_path):
    assert plot_parity(comparison, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_of_one_frame_and_of_many_points(comparison, tmp_path):
    """A single energy has no spread; many points are coloured by density, and counted when there are more."""
    assert plot_parity(comparison.select(np.arange(7) == 6), tmp_path / "one.png")
    for count, limit in ((4, MANY_POINTS), (150, TOO_MANY_POINTS)):
        many = replace(
            comparison,
            values={**comparison.values, "forces": np.tile(comparison.forces, (count, 1))},
            reference=comparison.reference | {"forces": np.tile(comparison.reference["forces"], (count, 1))},
        )
        assert parity_panels(many)[1].error.size > limit
        assert plot_parity(many, tmp_path / "many.png")


def test_point_density_counts_each_bin(rng):
    x = np.array([0.0, 0.001, 0.002, 1.0])
    assert list(point_density(x, x, bins=10)) == [3, 3, 3, 1]
    x, y = rng.normal(size=(2, 1000))
    assert point_density(x, y).min() >= 1


def test_predictions_round_trip(comparison, frames, tmp_path):
    write_predictions(comparison, frames, tmp_path / "predictions.xyz")
    read = ase.io.read(tmp_path / "predictions.xyz", index=":")
    assert len(read) == 7
    first, cluster = read[0], read[-1]
    assert first.info["predicted_energy"] == pytest.approx(comparison.energy[0], abs=1e-10)
    # Arrays are written with 8 decimals.
    np.testing.assert_allclose(first.arrays["predicted_forces"], comparison.forces[:8], atol=1e-8)
    np.testing.assert_allclose(
        first.arrays["reference_forces"], comparison.reference["forces"][:8], atol=1e-8
    )
    np.testing.assert_allclose(first.info["predicted_stress"], comparison.stress[0], atol=1e-8)
    assert first.info["source_index"] == 0
    assert "predicted_stress" not in cluster.info and "reference_stress" not in cluster.info


def test_evaluate_writes_what_was_asked(monkeypatch, data_file, morse_model, tmp_path):
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model())
    result = run.evaluate("m", [data_file], output=tmp_path / "out", predictions=tmp_path / "p.xyz")
    assert [f.name for f in result.files] == ["errors.json", "parity.png", "p.xyz"]
    assert all(f.is_file() for f in result.files)


def in_units(atoms, energy: str, length: str):
    """The same structure with its labels, written in other units."""
    e, a = energy_factor(energy), length_factor(length)
    other = Atoms(atoms.numbers, atoms.positions / a, cell=atoms.cell / a, pbc=atoms.pbc)
    powers = {"energy": 0, "forces": 1, "stress": 3}
    labels = {name: value * a ** powers[name] / e for name, value in atoms.calc.results.items()}
    other.calc = SinglePointCalculator(other, **labels)
    return other


@pytest.mark.parametrize("units", [{"energy": "kcal/mol"}, {"energy": "Hartree", "length": "Bohr"}])
def test_evaluate_reads_data_in_the_units_of_the_model(monkeypatch, morse_model, crystals, tmp_path, units):
    """An exact model has no error, and its predictions are written in eV and Å."""
    units = UnitsConfig(**units)
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model(units=units))
    structures = [in_units(atoms, units.energy, units.length) for atoms in crystals]
    ase.io.write(tmp_path / "other.xyz", structures, format="extxyz")
    found = run.evaluate("m", [tmp_path / "other.xyz"], predictions=tmp_path / "p.xyz").comparison
    # 8 decimals in the file: of Hartree/Bohr³, 184 eV/Å³, at worst; of positions times stiffness and bonds
    assert np.abs(found.error("energy")).max() < 1e-5
    assert np.abs(found.error("forces")).max() < 1e-5
    assert np.nanmax(np.abs(found.error("stress"))) < 1e-5
    written = ase.io.read(tmp_path / "p.xyz", 0)
    np.testing.assert_allclose(written.positions, crystals[0].positions, atol=1e-7)
    assert written.info["reference_energy"] == pytest.approx(crystals[0].get_potential_energy(), abs=1e-6)


def test_evaluate_takes_labels_of_atoms_for_what_they_were_in_the_training(
    monkeypatch, morse_model, data_file, tmp_path
):
    (tmp_path / "types.xyz").write_text(data_file.read_text().replace("\nCu ", "\nCuA "))
    parsing = Parsing({"CuA": "Cu"})
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model(parsing=parsing))
    found = run.evaluate("m", [tmp_path / "types.xyz"]).comparison
    expected = run.evaluate("m", [data_file]).comparison
    np.testing.assert_array_equal(found.energy, expected.energy)
    with pytest.raises(DataError, match="'CuA' is not a chemical element"):
        run.evaluate("m", [tmp_path / "types.xyz"], species_map="Other=Cu")


def test_evaluate_without_a_label_counts_none(monkeypatch, data_file, morse_model):
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model())
    result = run.evaluate("m", [data_file], label_names={"stress": "none"})
    assert np.isnan(result.comparison.reference["stress"]).all()
    assert not np.isnan(result.comparison.reference["forces"]).any()


def test_evaluate_refuses_an_output_that_is_a_file(data_file):
    """Before the model is even looked for."""
    with pytest.raises(DataError, match="is a file"):
        run.evaluate("no-model", [data_file], output=data_file)


def test_evaluate_names_the_labels_in_the_file_and_the_options(monkeypatch, data_file, morse_model):
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model())
    with pytest.raises(DataError, match=r"'enrgy'.* Did you mean 'energy'\?.*--energy-key"):
        run.evaluate("m", [data_file], label_names={"energy": "enrgy"})


def test_predictions_without_labels_print_no_table(monkeypatch, morse_model, crystals, tmp_path):
    monkeypatch.setattr(run, "load_model", lambda path, *_: morse_model())
    bare = crystals[0].copy()
    ase.io.write(tmp_path / "bare.xyz", bare, format="extxyz")
    console = Console(width=120, record=True, file=io.StringIO())
    run.evaluate("m", [tmp_path / "bare.xyz"], predictions=tmp_path / "p.xyz", console=console)
    assert console.export_text() == "There are no labels to compare the predictions with.\n"


@pytest.mark.parametrize(("offset", "lines"), [(0.9, 0), (-1.1, 1)])
def test_energies_of_another_kind(comparison, caplog, offset, lines):
    exact = comparison.reference["energy"] + offset * comparison.num_atoms
    run.warn_about_offset(replace(comparison, values={**comparison.values, "energy": exact}))
    assert len(caplog.messages) == lines
    assert all("units, or another level of theory" in message for message in caplog.messages)


def test_histogram_says_what_it_leaves_out_and_tick_labels_do_not_touch(rng):
    reference = 1e-3 * rng.normal(size=200)  # long tick labels
    figure = Figure(figsize=(3.9, 5.9), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1.4])
    error = 1e-4 * rng.normal(size=200)
    _draw_histogram(below, _panel("Stress", "stress", reference, reference + error, STRESS.reported[0]))
    assert below.get_title(loc="right") == ""  # nothing left out
    below.clear()
    error[:2] = 3e-3
    panel = _panel("Stress", "stress", reference, reference + error, STRESS.reported[0])
    _draw_parity(above, panel)
    _draw_histogram(below, panel)
    FigureCanvasAgg(figure).draw()
    assert below.get_title(loc="right") == "2 of 200 values outside"
    low, high = above.get_xlim()
    ticks = zip(above.get_xticks(), above.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for tick, label in ticks if low <= tick <= high]
    assert len(boxes) > 2
    height = max(label.get_fontsize() for label in above.get_xticklabels()) / 72 * figure.dpi
    # Slanted by 30 degrees, neighbours are clear when their ends are a line height / sin 30 apart.
    slanted = above.get_xticklabels()[0].get_rotation() == 30
    for left, right in pairwise(boxes):
        assert right.x1 - left.x1 > 2 * height if slanted else right.x0 > left.x1
