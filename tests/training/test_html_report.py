"""The HTML page of a run: complete, self-contained, escaped, and true of runs that have not ended."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import ase.io
import pytest

from equipot.config import LabelsConfig, UnitsConfig
from equipot.data.convert import convert
from equipot.data.dataset import LazyDataset
from equipot.data.load import load_datasets
from equipot.data.text import duration
from equipot.errors import TrainingError
from equipot.evaluation.report import number
from equipot.training import stopping
from equipot.training.history import read_sessions
from equipot.training.html_report import write_report
from equipot.training.monitor import TrainingMonitor
from equipot.training.run import train


class Page(HTMLParser):
    """Text, sources and targets of a page; fails on tags that are not closed in order."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self, text: str):
        super().__init__()
        self.text, self.tags, self.sources, self.links, self.cells = "", [], [], [], []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.sources += [values[name] for name in ("src", "srcset", "data") if name in values]
        self.links += [values["href"]] if "href" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] == "td":
            self.cells.append(data.strip())


@pytest.fixture(scope="module")
def finished(config_in, structures, tmp_path_factory):
    """A run on files whose names and groups would be HTML if they were not escaped."""
    folder = tmp_path_factory.mktemp("a<b>&c")
    frames = ase.io.read(structures, ":")
    for i, frame in enumerate(frames):
        frame.info["config_type"] = ("<script>alert(1)</script>", "cold & dense")[i % 2]
    ase.io.write(folder / "x<i>&.xyz", frames)
    data = {"train": str(folder / "x<i>&.xyz"), "test": str(structures.with_name("test.xyz"))}
    config = config_in(folder / "run", data=data)
    train(config)
    return config


@pytest.fixture
def copy(finished, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(finished.run.directory, tmp_path / "copy")


def page(run) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_training_writes_the_page(finished):
    found = Page((finished.run.directory / "report.html").read_text(encoding="utf-8"))
    for text in ("finished, 4 of 4 epochs", "Test set: 5 frames, 20 atoms",
                 "Validation set: 4 frames, 16 atoms", "Worst frames by forces", "Worst frames by energy",
                 "least squares", "channels: 2", "torch "):  # fmt: skip
        assert text in found.text, text


def test_page_needs_nothing_but_itself(finished):
    text = (finished.run.directory / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert len(found.sources) == 3  # learning curve, parity of validation and test
    assert all(source.startswith("data:image/") for source in found.sources)
    assert all(link.startswith("#") for link in found.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(found.tags)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:image/[^\"]*", "", text))


def test_names_from_the_data_are_text(finished):
    found = page(finished.run.directory)
    assert "x<i>&.xyz" in found.text
    assert "<script>alert(1)</script>" in found.text and "cold & dense" in found.text
    assert "i" not in found.tags and "script" not in found.tags


def test_numbers_are_those_of_the_evaluation(finished):
    run = finished.run.directory
    errors = json.loads((run / "evaluation" / "test" / "errors.json").read_text(encoding="utf-8"))
    found = page(run)
    for quantity in ("energy", "forces"):
        assert number(errors["errors"][quantity]["mae"]) in found.cells
    worst = errors["worst_frames"]["forces"][0]
    assert str(worst["index"]) in found.cells and f"{worst['worst_atom']} (Cu)" in found.cells
    # the row of the only species has its errors
    assert found.cells.count("Cu") == 1


def test_page_of_a_killed_run_says_so(copy):
    """No metrics.json, no evaluation, an open session, and a last row that was being written."""
    shutil.rmtree(copy / "evaluation")
    (copy / "metrics.json").unlink()
    sessions = read_sessions(copy / "sessions.json")
    sessions[0] |= {"ended": None, "stopped": None}
    (copy / "sessions.json").write_text(json.dumps({"sessions": sessions}))
    rows = (copy / "metrics.csv").read_text().splitlines()
    (copy / "metrics.csv").write_text("\n".join(rows[:3]) + "\n" + rows[3][:20])
    found = page(copy)
    assert "unfinished: still running, or killed, 2 of 4 epochs" in found.text
    assert "Not evaluated" in found.text
    best = min(csv.DictReader(rows[:3]), key=lambda row: float(row["validation_loss"]))
    assert f"Validation errors at the best epoch, {best['epoch']}" in found.text


def test_page_of_a_run_without_an_epoch(copy):
    shutil.rmtree(copy / "evaluation")
    for name in ("metrics.json", "metrics.csv", "sessions.json", "log.txt"):
        (copy / name).unlink()
    assert "No epoch has been finished" in page(copy).text


def test_old_results_of_a_run_that_goes_on_are_called_old(copy):
    assert "has gone on since" not in page(copy).text
    rows = (copy / "metrics.csv").read_text()
    last = rows.splitlines()[-1].partition(",")
    (copy / "metrics.csv").write_text(f"{rows}5,{last[2]}\n")
    assert "has gone on since" in page(copy).text


def test_interrupted_and_resumed_run_has_two_sessions(make_config, monkeypatch):
    config = make_config(training={"epochs": 2})

    def stop_at_step_two(self):
        return stopping.INTERRUPTED if self.batches.trainer.global_step == 2 else None

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "_reason_to_stop", stop_at_step_two)
        assert train(config).stopped == stopping.INTERRUPTED
    run = config.run.directory
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    assert "interrupted, 0 of 2 epochs" in text and "--resume RUN" in text
    assert not (run / "evaluation").exists()  # there may be seconds left only
    train(config, resume=run)
    text = Page((run / "report.html").read_text(encoding="utf-8")).text
    assert "finished, 2 of 2 epochs" in text and "Trained in 2 sessions" in text
    assert [s["stopped"] for s in read_sessions(run / "sessions.json")] == ["interrupted", "finished"]
    assert [s["resumed"] for s in read_sessions(run / "sessions.json")] == [False, True]


def test_failed_run_says_why(make_config):
    config = make_config(training={"learning_rate": 1e300, "epochs": 3})
    with pytest.raises(TrainingError):
        train(config)
    text = page(config.run.directory).text
    assert "failed, 0 of 3 epochs" in text and "The loss is" in text


def test_training_that_does_not_start_is_no_session(finished):
    with pytest.raises(TrainingError, match="already done"):
        train(finished, resume=finished.run.directory)
    assert len(read_sessions(finished.run.directory / "sessions.json")) == 1


def test_warnings_of_the_log_are_shown_once(copy):
    with (copy / "log.txt").open("a", encoding="utf-8") as log:
        log.write("Warning: <b>two</b> atoms\nWarning: <b>two</b> atoms\nnothing\n")
    assert page(copy).text.count("<b>two</b> atoms") == 1


def test_what_is_no_run_is_refused(finished, tmp_path):
    with pytest.raises(TrainingError, match="is not a folder"):
        write_report(tmp_path / "nothing")
    parent = finished.run.directory.parent
    with pytest.raises(TrainingError, match=r"has no config\.yaml, .*Runs in it: .*run\."):
        write_report(parent)
    with pytest.raises(TrainingError, match="is a folder"):
        write_report(finished.run.directory, tmp_path)


def test_damaged_file_is_an_error_and_leaves_the_old_page(copy):
    before = (copy / "report.html").read_bytes()
    for damaged in (b"{", b"\x93" * 300):
        (copy / "statistics.json").write_bytes(damaged)
        with pytest.raises(TrainingError, match=r"cannot be read.* statistics\.json is no JSON: ") as error:
            write_report(copy)
        assert len(str(error.value)) < 400  # none of the bytes
    assert (copy / "report.html").read_bytes() == before


def test_durations():
    times = [duration(seconds) for seconds in (0.04, 59.9, 60, 130, 3599.6, 7500)]
    assert times == ["0.0 s", "59.9 s", "1 min 00 s", "2 min 10 s", "1 h 00 min", "2 h 05 min"]


def test_lazy_data_sets_are_evaluated_by_group(finished, make_config, tmp_path):
    """A store is read frame by frame; its groups and places reach errors.json all the same."""
    source, store = finished.data.train[0], tmp_path / "groups.equipot"
    convert([str(source)], store, LabelsConfig(), UnitsConfig(), finished.model.cutoff)
    config = make_config(data={"train": str(store)}, training={"epochs": 1})
    assert isinstance(load_datasets(config.data, config.model.cutoff).validation, LazyDataset)
    train(config)
    path = config.run.directory / "evaluation" / "validation" / "errors.json"
    errors = json.loads(path.read_text(encoding="utf-8"))
    groups = {name: group["frames"] for name, group in errors["groups"]["config_type"].items()}
    assert set(groups) == {"<script>alert(1)</script>", "cold & dense"} and sum(groups.values()) == 4
    worst = errors["worst_frames"]["forces"][0]
    # frames with an even number are of the first group
    assert worst["file"].endswith("groups.equipot")
    assert worst["config_type"] == ("<script>alert(1)</script>", "cold & dense")[worst["index"] % 2]
