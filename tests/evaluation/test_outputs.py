"""Tables, JSON, plots and predictions."""

import io
import json
from dataclasses import replace
from itertools import pairwise

import ase.io
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from equipot.errors import DataError
from equipot.evaluation import run
from equipot.evaluation.metrics import error_rows, grouped_rows
from equipot.evaluation.plots import (
    MANY_POINTS,
    _draw_histogram,
    _draw_parity,
    _panel,
    parity_panels,
    plot_parity,
    point_density,
)
from equipot.evaluation.predict import predict_frames
from equipot.evaluation.report import as_dict, print_report, write_json
from equipot.evaluation.write import write_predictions


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


def test_groups_share_one_table(comparison):
    """Two files: a line for each, with the errors of its own frames."""
    frames = [replace(f, file=f"part{i % 2}.xyz") for i, f in enumerate(comparison.frames)]
    mixed = replace(comparison, frames=frames)
    groups = grouped_rows(mixed)
    assert set(groups) == {"part0.xyz", "part1.xyz"}
    assert groups["part1.xyz"] == error_rows(mixed.select([1, 3, 5]))
    console = Console(width=120, record=True, file=io.StringIO())
    print_report(mixed, console)
    line = next(text for text in console.export_text().splitlines() if text.startswith("│ part1.xyz"))
    assert f"{groups['part1.xyz'][0].mae:.1f} / {groups['part1.xyz'][0].rmse:.1f}" in line


def test_json_has_the_numbers_of_the_table(comparison, tmp_path):
    write_json(comparison, tmp_path / "model.pt", tmp_path / "deep" / "errors.json")
    content = json.loads((tmp_path / "deep" / "errors.json").read_text(encoding="utf-8"))
    assert content == as_dict(comparison, tmp_path / "model.pt")
    assert set(content["errors"]) == {"energy", "forces", "forces_Cu", "forces_Ag", "stress", "stress_GPa"}
    expected = 100 * np.abs(comparison.reference_forces).mean()  # a tenth, in meV
    assert content["errors"]["forces"]["mae"] == pytest.approx(expected, rel=1e-6)
    assert content["errors"]["forces"]["atoms"] == 51
    assert len(content["worst_frames"]) == 5


def test_parity_panels_leave_out_what_is_not_labelled(comparison):
    assert [p.title for p in parity_panels(comparison)] == ["Energy", "Forces", "Stress"]
    cluster = comparison.select([6])
    assert [p.title for p in parity_panels(cluster)] == ["Energy", "Forces"]
    assert parity_panels(comparison)[1].error.size == 3 * 51
    assert parity_panels(comparison)[2].error.size == 9 * 6


def test_plot_is_written(comparison, tmp_path):
    assert plot_parity(comparison, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plot_of_one_frame_and_of_many_points(comparison, tmp_path):
    """A single energy has no spread; many points are coloured by density."""
    assert plot_parity(comparison.select([6]), tmp_path / "one.png")
    many = comparison.select([0, 1, 2, 3, 4, 5] * 4)
    assert parity_panels(many)[1].error.size > MANY_POINTS
    assert plot_parity(many, tmp_path / "many.png")


def test_point_density_counts_each_bin(rng):
    x = np.array([0.0, 0.001, 0.002, 1.0])
    assert list(point_density(x, x, bins=10)) == [3, 3, 3, 1]
    x, y = rng.normal(size=(2, 1000))
    assert point_density(x, y).min() >= 1


def test_predictions_round_trip(comparison, tmp_path):
    write_predictions(comparison, tmp_path / "predictions.xyz")
    read = ase.io.read(tmp_path / "predictions.xyz", index=":")
    assert len(read) == 7
    first, cluster = read[0], read[-1]
    assert first.info["predicted_energy"] == pytest.approx(comparison.energy[0], abs=1e-10)
    # Arrays are written with 8 decimals.
    np.testing.assert_allclose(first.arrays["predicted_forces"], comparison.forces[:8], atol=1e-8)
    np.testing.assert_allclose(first.arrays["reference_forces"], comparison.reference_forces[:8], atol=1e-8)
    np.testing.assert_allclose(first.info["predicted_stress"], comparison.stress[0], atol=1e-8)
    assert first.info["source_index"] == 0
    assert "predicted_stress" not in cluster.info and "reference_stress" not in cluster.info


def test_evaluate_writes_what_was_asked(monkeypatch, data_file, morse_model, tmp_path):
    monkeypatch.setattr(run, "load_model", lambda path, device: morse_model())
    result = run.evaluate("m", [data_file], output=tmp_path / "out", predictions=tmp_path / "p.xyz")
    assert [f.name for f in result.files] == ["errors.json", "parity.png", "p.xyz"]
    assert all(f.is_file() for f in result.files)


def test_evaluate_without_a_label_counts_none(monkeypatch, data_file, morse_model):
    monkeypatch.setattr(run, "load_model", lambda path, device: morse_model())
    result = run.evaluate("m", [data_file], label_names={"stress": "none"})
    assert np.isnan(result.comparison.reference_stress).all()
    assert not np.isnan(result.comparison.reference_forces).any()


def test_evaluate_refuses_an_output_that_is_a_file(data_file):
    """Before the model is even looked for."""
    with pytest.raises(DataError, match="is a file"):
        run.evaluate("no-model", [data_file], output=data_file)


def test_evaluate_names_the_labels_in_the_file_and_the_options(monkeypatch, data_file, morse_model):
    monkeypatch.setattr(run, "load_model", lambda path, device: morse_model())
    with pytest.raises(DataError, match=r"'enrgy'.* Did you mean 'energy'\?.*--energy-key"):
        run.evaluate("m", [data_file], label_names={"energy": "enrgy"})


def test_predictions_without_labels_print_no_table(monkeypatch, morse_model, crystals, tmp_path):
    monkeypatch.setattr(run, "load_model", lambda path, device: morse_model())
    bare = crystals[0].copy()
    ase.io.write(tmp_path / "bare.xyz", bare, format="extxyz")
    console = Console(width=120, record=True, file=io.StringIO())
    run.evaluate("m", [tmp_path / "bare.xyz"], predictions=tmp_path / "p.xyz", console=console)
    assert console.export_text() == "There are no labels to compare the predictions with.\n"


@pytest.mark.parametrize(("offset", "lines"), [(0.9, 0), (-1.1, 1)])
def test_energies_of_another_kind(comparison, caplog, offset, lines):
    exact = comparison.reference_energy + offset * comparison.num_atoms
    run.warn_about_offset(replace(comparison, energy=exact))
    assert len(caplog.messages) == lines
    assert all("units, or another level of theory" in message for message in caplog.messages)


def test_histogram_says_what_it_leaves_out_and_tick_labels_do_not_touch(rng):
    reference = 1e-3 * rng.normal(size=200)  # long tick labels
    figure = Figure(figsize=(3.9, 5.9), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[3, 1.4])
    panel = _panel("Stress", "stress", reference, reference + 1e-4 * rng.normal(size=200), "meV/Å³")
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
