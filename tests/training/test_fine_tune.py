"""Training that starts from a trained model, and training on several levels of theory."""

import csv
import dataclasses
import json
import re
import zipfile

import ase
import ase.io
import numpy as np
import pytest
import torch
from clusters import MODEL, write_clusters

from equipot.config import config_from_dict
from equipot.data.load import load_datasets
from equipot.data.splits import Split
from equipot.deploy.checkpoint import load_checkpoint, load_training_state
from equipot.deploy.export import deploy
from equipot.deploy.metadata import read_metadata
from equipot.errors import ConfigError, ModelFileError, TrainingError
from equipot.evaluation.metrics import summary
from equipot.evaluation.model import load_model
from equipot.evaluation.run import evaluate
from equipot.models.parts import parts_of
from equipot.models.predict import predict
from equipot.training import stopping
from equipot.training.fine_tune import begin_training, start_from, with_architecture
from equipot.training.html_report import write_report
from equipot.training.learning_rate import find_learning_rate
from equipot.training.monitor import TrainingMonitor
from equipot.training.optimizers import make_optimizer
from equipot.training.report import describe_metrics
from equipot.training.results import compare_dataset
from equipot.training.run import train

pytestmark = pytest.mark.usefixtures("no_plot")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {
        "low": write_clusters(folder / "low.xyz", ["Cu4"], 12, 0),
        "high": write_clusters(folder / "high.xyz", ["Cu4"], 8, 1, 1.1, -7.0),
        "alloy": write_clusters(folder / "alloy.xyz", ["Cu4", "Cu3Ag", "Cu2Ag2"], 9, 2),
    }


def make_config(directory, train_files, fine_tune=None, model=MODEL, training=(), **data):
    sections = {
        "data": {"train": train_files, "validation": 3, **data},
        "training": {"epochs": 2, "batch_size": 3, "schedule": {"kind": "constant"}, **dict(training)},
        "run": {"directory": str(directory), "device": "cpu"},
    }
    if model is not None:
        sections["model"] = model
    if fine_tune is not None:
        sections["fine_tune"] = fine_tune
    return config_from_dict(sections)


@pytest.fixture(scope="module")
def source(files, tmp_path_factory):
    """A model trained on the low level, which has no name."""
    return train(make_config(tmp_path_factory.mktemp("source") / "run", files["low"])).directory


def two_levels(files):
    return [{"path": files["low"], "level": "low"}, {"path": files["high"], "level": "high"}]


@pytest.fixture(scope="module")
def source_of_two(files, tmp_path_factory):
    """A model trained on two levels, and tested on both."""
    folder = tmp_path_factory.mktemp("source_of_two")
    test = [
        {"path": write_clusters(folder / "test_low.xyz", ["Cu4"], 2, 3), "level": "low"},
        {"path": write_clusters(folder / "test_high.xyz", ["Cu4"], 3, 4, 1.1, -7.0), "level": "high"},
    ]
    return train(make_config(folder / "run", two_levels(files), test=test)).directory


def begin(source, config):
    """The start of a fine-tuning as ``train`` makes it, and the data."""
    checkpoint = load_training_state(source)
    config = with_architecture(config, checkpoint.config.model, "the source")
    datasets = load_datasets(config.data, config.model.cutoff)
    start = start_from(checkpoint, config, datasets, "cpu")
    assert start.potential.training
    start.potential.eval()
    return checkpoint, start, datasets


def without_level(graph):
    return dataclasses.replace(graph, level=None)


def rows_of(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


# --- the start


def test_before_the_first_step_the_model_is_that_of_the_source(source, files, tmp_path):
    """Forces to the last bit, though the data have other neighbors and forces; energies up to the shift."""
    config = make_config(tmp_path / "run", files["high"], {"model": str(source)}, model=None)
    checkpoint, start, datasets = begin(source, config)
    assert datasets.statistics.force_rms != checkpoint.statistics.force_rms
    assert datasets.statistics.avg_num_neighbors != checkpoint.statistics.avg_num_neighbors
    shifts = [p.scale_shift.shift for p in (start.potential, checkpoint.potential)]
    for graph in datasets.train:
        new, old = predict(start.potential, graph), predict(checkpoint.potential, graph)
        assert torch.equal(new.forces, old.forces)
        expected = old.energy + 4 * (shifts[0] - shifts[1])
        # a few roundings of some eV
        torch.testing.assert_close(new.energy, expected, rtol=0, atol=1e-12)


def test_reference_energies_are_fitted_to_what_the_model_leaves(source, files, tmp_path):
    config = make_config(tmp_path / "run", files["high"], {"model": str(source)}, model=None)
    _, start, datasets = begin(source, config)
    left = [predict(start.potential, g).energy - g.labels.energy.value for g in datasets.train]
    # With one composition the fit is the mean error: none is left.
    assert abs(float(torch.cat(left).mean())) < 1e-10
    rms = float((torch.cat(left) / 4).square().mean().sqrt())
    assert start.statistics.energy_residual_rms == pytest.approx(rms, rel=1e-9)


def test_errors_of_the_start_are_said(source, files, tmp_path, capsys):
    """On its own data, and with its reference energies, those of the model to start from."""
    data = {"validation": str(files["low"])}
    fine_tune = {"model": str(source), "atomic_energies": "keep"}
    train(make_config(tmp_path / "run", files["high"], fine_tune, training={"epochs": 1}, **data))
    found = re.search(r"Before the first step, validation: (.*)", capsys.readouterr().out)[1]
    best = load_checkpoint(source / "checkpoints" / "best.ckpt")
    datasets = load_datasets(make_config(tmp_path, files["high"], **data).data, best.config.model.cutoff)
    frames = datasets.validation, datasets.split.validation
    assert found == describe_metrics(summary(compare_dataset(best.potential, *frames, torch.device("cpu"))))


@pytest.mark.parametrize(
    ("settings", "names", "kept"),
    [
        ({"atomic_energies": "keep"}, None, True),
        ({"atomic_energies": "refit"}, None, False),
        ({}, None, False),
        ({}, "low", True),  # a level that the source knows by name
        ({"level": "low"}, "other", False),
        ({"atomic_energies": "refit"}, "low", False),
    ],
)
def test_reference_energies_kept_or_refitted(source, source_of_two, files, tmp_path, settings, names, kept):
    origin = source_of_two if names else source
    fine_tune = {"model": str(origin), **settings}
    config = make_config(tmp_path / "run", files["high"], fine_tune, model=None, level=names)
    checkpoint, start, _ = begin(origin, config)
    before = checkpoint.at_level("low" if names else None).potential.scale_shift.shift
    assert torch.equal(before, start.potential.scale_shift.shift) == kept


def test_given_reference_energies_are_taken(source, files, tmp_path):
    fine_tune = {"model": str(source), "atomic_energies": "refit"}
    config = make_config(tmp_path / "run", files["high"], fine_tune, None, atomic_energies={"Cu": -3.5})
    assert begin(source, config)[1].potential.scale_shift.shift.tolist() == [-3.5]


@pytest.mark.parametrize("energies", ["keep", "refit"])
def test_new_elements(source, files, tmp_path, energies):
    fine_tune = {"model": str(source), "atomic_energies": energies}
    config = make_config(tmp_path / "run", files["alloy"], fine_tune, model=None)
    checkpoint, start, datasets = begin(source, config)
    assert datasets.species == start.potential.species == ["Cu", "Ag"]
    copper = [graph for graph in datasets.train if int(graph.atom_types.max()) == 0]
    for graph in copper:
        new, old = predict(start.potential, graph), predict(checkpoint.potential, graph)
        # Rows of other elements are left out of the sums, in the same order.
        torch.testing.assert_close(new.forces, old.forces, rtol=0, atol=1e-12)
    kept = start.potential.scale_shift.shift[0] == checkpoint.potential.scale_shift.shift[0]
    assert bool(kept) == (energies == "keep")
    left = [float(predict(start.potential, g).energy - g.labels.energy.value) for g in datasets.train]
    silver = [e for e, g in zip(left, datasets.train, strict=True) if int(g.atom_types.max()) == 1]
    # The new element's energy takes up the mean; tens of eV if it had stayed the mean of the others.
    assert abs(np.mean(silver)) < 2.0
    assert any("New elements: Ag" in line for line in start.lines)
    assert not any("Warning" in line for line in start.lines)
    config = make_config(tmp_path / "run", files["alloy"], fine_tune | {"freeze": ["embedding"]}, model=None)
    assert any("take embedding out of fine_tune.freeze" in line for line in begin(source, config)[1].lines)


def test_elements_without_data_are_left_out_and_said(files, tmp_path):
    alloy = train(make_config(tmp_path / "alloy", files["alloy"])).directory
    config = make_config(tmp_path / "run", files["low"], {"model": str(alloy)}, model=None)
    checkpoint, start, datasets = begin(alloy, config)
    assert (checkpoint.potential.species, start.potential.species) == (["Cu", "Ag"], ["Cu"])
    assert any("left out: Ag" in line for line in start.lines)
    graph = datasets.train[0]
    new, old = predict(start.potential, graph), predict(checkpoint.potential, graph)
    torch.testing.assert_close(new.forces, old.forces, rtol=0, atol=1e-12)


# --- what is refused


def test_architecture_must_agree(source, files, tmp_path):
    def run(model):
        return train(make_config(tmp_path / "run", files["high"], {"model": str(source)}, model))

    with pytest.raises(ConfigError, match=r"model\.channels: 2 there, 3 .*; model\.l_max: 1 there, 2"):
        run({"type": "nequip", "channels": 3, "l_max": 2})
    with pytest.raises(ConfigError, match=r"model\.type: nequip there, allegro"):
        run({"type": "allegro"})
    assert not (tmp_path / "run").exists()
    single = {
        "type": "nequip",
        "channels": 2,
        "dtype": "float32",
        "radial_intervals": 64,
    }  # the rest is as there
    checkpoint = load_checkpoint(run(single).last_checkpoint)
    assert checkpoint.config.model.radial_intervals == 64
    assert checkpoint.config.model.l_max == 1
    assert checkpoint.potential.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "level", "message"),
    [
        ({}, "other", r"say in fine_tune\.level .*'other'.*low, high"),
        ({}, None, r"say in fine_tune\.level .*data without a level"),
        (
            {"level": "pbe"},
            "other",
            r"fine_tune\.level is 'pbe', but the model to start from has no such level.*low, high",
        ),
        ({"level": "low"}, "high", r"fine_tune\.level is 'low', but .*knows all"),
    ],
)
def test_a_level_to_start_from_is_never_guessed(source_of_two, files, tmp_path, settings, level, message):
    fine_tune = {"model": str(source_of_two), **settings}
    config = make_config(tmp_path / "run", files["high"], fine_tune, model=None, level=level)
    with pytest.raises(ConfigError, match=message):
        train(config)


def test_unknown_part_is_refused_before_anything_is_written(source, files, tmp_path):
    for fine_tune in ({"freeze": ["embeding"]}, {"learning_rate_factors": {"embeding": 0.1}}):
        config = make_config(tmp_path / "run", files["high"], {"model": str(source), **fine_tune}, None)
        with pytest.raises(ConfigError, match=r"no part 'embeding'\. Its parts are: .*embedding"):
            train(config)
    assert not (tmp_path / "run").exists()


def test_nothing_to_start_from(files, tmp_path):
    config = make_config(tmp_path / "run", files["high"], {"model": str(tmp_path / "none.pt")}, model=None)
    with pytest.raises(ModelFileError, match="No model file or run directory"):
        train(config)


# --- training


def test_frozen_parts_stay_and_the_others_move(source, files, tmp_path):
    fine_tune = {"model": str(source), "freeze": ["embedding", "layers.0"]}
    result = train(make_config(tmp_path / "run", files["high"], fine_tune, model=None))
    before = load_checkpoint(source / "checkpoints" / "best.ckpt").potential
    for weights in ("ema", "last"):
        after = load_checkpoint(result.last_checkpoint, weights).potential
        frozen = {name for part in fine_tune["freeze"] for name in parts_of(before)[part]}
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
            if not name.startswith("scale_shift"):
                assert torch.equal(old, new) == (name in frozen), name
    assert "of them trained)" in (result.directory / "log.txt").read_text()


def test_learning_rate_factors(source, files, tmp_path):
    """Adam's first step moves every weight by the learning rate, wherever its gradient is not zero."""
    fine_tune = {"model": str(source), "learning_rate_factors": {"embedding": 0.1, "readout": 2.0}}
    training = {"epochs": 1, "batch_size": 5, "learning_rate": 1e-3, "schedule": {"kind": "constant"}}
    result = train(make_config(tmp_path / "run", files["high"], fine_tune, None, training))
    assert torch.load(result.last_checkpoint, weights_only=True)["global_step"] == 1
    before = dict(load_checkpoint(source / "checkpoints" / "best.ckpt").potential.named_parameters())
    after = dict(load_checkpoint(result.last_checkpoint, "last").potential.named_parameters())
    parts = parts_of(load_checkpoint(result.last_checkpoint).potential)
    for part, factor in (("embedding", 0.1), ("layers", 1.0), ("readout", 2.0)):
        moved = max(float((after[n] - before[n]).detach().abs().max()) for n in parts[part])
        # Adam divides by |gradient| + 1e-8.
        assert moved == pytest.approx(1e-3 * factor, rel=1e-3)
    assert rows_of(result.directory)[0]["learning_rate"] == "0.001"


def test_interrupted_fine_tuning_resumes_exactly(source, files, tmp_path, monkeypatch):
    fine_tune = {"model": str(source), "freeze": ["embedding"], "learning_rate_factors": {"layers.0": 0.3}}

    def config(name, origin=source):
        given = fine_tune | {"model": str(origin)}
        return make_config(tmp_path / name, files["alloy"], given, None, {"epochs": 3})

    whole = train(config("whole"))
    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "_reason_to_stop", stop_at_step_three)
        broken = train(config("broken"))
    assert broken.stopped == stopping.OUT_OF_TIME
    resumed = train(config("broken"), resume=broken.directory)
    contents = [torch.load(r.last_checkpoint, weights_only=True) for r in (whole, resumed)]
    for key in contents[0]["state_dict"]:
        assert torch.equal(contents[0]["state_dict"][key], contents[1]["state_dict"][key]), key
        name = key.removeprefix("potential.")
        assert torch.equal(contents[0]["equipot"]["ema"][name], contents[1]["equipot"]["ema"][name])
    other = fine_tune | {"freeze": []}
    with pytest.raises(TrainingError, match=r"fine_tune\.freeze"):
        train(
            make_config(tmp_path / "broken", files["alloy"], other, None, {"epochs": 9}),
            resume=broken.directory,
        )


def stop_at_step_three(self):
    return stopping.OUT_OF_TIME if self.batches.trainer.global_step == 3 else None


def test_replay_keeps_old_level_and_adds_the_new_one(source, files, tmp_path):
    entries = [
        {"path": files["high"], "level": "high"},
        {"path": files["low"], "level": "low", "weight": 0.5},
    ]
    fine_tune = {"model": str(source), "atomic_energies": "refit"}
    result = train(make_config(tmp_path / "run", entries, fine_tune, model=None))
    checkpoint = load_checkpoint(result.last_checkpoint)
    assert checkpoint.levels == ["high", "low"]
    shift = checkpoint.potential.scale_shift.shift
    # 7 eV per atom apart, and a tenth of EMT's small energies.
    assert float(shift[1] - shift[0]) == pytest.approx(7.0, abs=0.5)
    log = (result.directory / "log.txt").read_text()
    assert "Level high starts from the model's only one." in log
    assert "Atomic energies of high" in log and "Atomic energies of low" in log


# --- several levels


def test_metrics_of_each_level(source_of_two):
    row = rows_of(source_of_two)[-1]
    errors = {name: float(row[f"validation_forces_mae{name}"]) for name in ("", "[low]", "[high]")}
    assert min(errors["[low]"], errors["[high]"]) < errors[""] < max(errors["[low]"], errors["[high]"])
    log = (source_of_two / "log.txt").read_text()
    assert "  low: forces MAE" in log and "  high: forces MAE" in log


def test_test_errors_of_each_level(source_of_two):
    errors = json.loads((source_of_two / "metrics.json").read_text())["test"]
    # 2 and 3 frames of 4 atoms; the mean over all is that of the levels, but for the rounding of sums
    mean = (2 * errors["forces_mae[low]"] + 3 * errors["forces_mae[high]"]) / 5
    assert mean == pytest.approx(errors["forces_mae"], rel=1e-12)
    for level, path in (("low", "test_low.xyz"), ("high", "test_high.xyz")):
        found = evaluate(source_of_two, [source_of_two.parent / path], device="cpu", level=level).comparison
        # collated with other frames, sums in another order
        assert summary(found)["energy_mae"] == pytest.approx(errors[f"energy_mae[{level}]"], rel=1e-9)
    assert (source_of_two / "log.txt").read_text().count("  high: forces MAE") == 2


def test_report_shows_the_reference_energies_of_each_level(source_of_two):
    text = write_report(source_of_two).read_text()
    shifts = load_checkpoint(source_of_two / "checkpoints" / "best.ckpt").potential.scale_shift.shift
    for level, shift in zip(("low", "high"), shifts, strict=True):
        assert f"reference energy, {level}<br>" in text and f">{float(shift[0]):.5f}<" in text


def test_levels_are_chosen_wherever_a_model_is_used(source_of_two, tmp_path):
    best = source_of_two / "checkpoints" / "best.ckpt"
    with pytest.raises(ModelFileError, match=r"choose a level of theory\. .*: low, high"):
        deploy(best, tmp_path / "model.pt")
    with pytest.raises(ModelFileError, match=r"no level 'pbe'\. .*: low, high"):
        load_model(source_of_two, "cpu", "pbe")
    with pytest.raises(ModelFileError, match="choose a level"):
        load_model(source_of_two, "cpu")
    metadata = deploy(best, tmp_path / "model.pt", level="high")
    assert (metadata.level, metadata.levels) == ("high", ("low", "high"))
    assert read_metadata(tmp_path / "model.pt").levels == ("low", "high")
    whole = load_checkpoint(best)
    assert metadata.validation["forces_mae"] == whole.validation["forces_mae[high]"]
    assert metadata.atomic_energies == tuple(whole.potential.scale_shift.shift[1].tolist())
    with pytest.raises(ModelFileError, match="deployed for the level 'high', not for 'low'"):
        load_model(tmp_path / "model.pt", "cpu", "low")
    data = whole.config.data
    for graph in load_datasets(data, 3.6).validation:
        found = load_model(tmp_path / "model.pt", "cpu", "high").predict(without_level(graph))
        expected = load_model(source_of_two, "cpu", "high").predict(without_level(graph))
        at_high = predict(whole.potential, dataclasses.replace(graph, level=torch.tensor([1])))
        for other in (found, expected):
            # The scripted model may add gradients in another order.
            torch.testing.assert_close(other.forces, at_high.forces, rtol=0, atol=1e-11)
            torch.testing.assert_close(other.energy, at_high.energy, rtol=0, atol=1e-11)


def test_both_levels_are_learned(source_of_two, files):
    """A model of one level could not be right for both: their energies are 7 eV per atom apart."""
    metrics = load_checkpoint(source_of_two / "checkpoints" / "last.ckpt").validation
    assert metrics["energy_mae[low]"] < 2.0 and metrics["energy_mae[high]"] < 2.0


def test_resuming_a_training_on_two_levels(source_of_two, files, tmp_path):
    parts = train(make_config(tmp_path / "parts", two_levels(files), training={"epochs": 1}))
    resumed = train(make_config(tmp_path / "parts", two_levels(files)), resume=parts.directory)
    whole = torch.load(source_of_two / "checkpoints" / "last.ckpt", weights_only=True)
    again = torch.load(resumed.last_checkpoint, weights_only=True)
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), name
    assert whole["equipot"]["validation"] == again["equipot"]["validation"]
    other = [two_levels(files)[0], {**two_levels(files)[1], "level": "higher"}]
    with pytest.raises(TrainingError, match=r"data\.train\[1\]\.level: high, now higher"):
        train(make_config(tmp_path / "parts", other, training={"epochs": 9}), resume=parts.directory)


# --- starting from a deployed file


def test_deployed_file_holds_what_a_training_needs(source, files, tmp_path):
    deploy(source / "checkpoints" / "best.ckpt", tmp_path / "model.pt")
    from_file, from_run = load_training_state(tmp_path / "model.pt"), load_training_state(source)
    assert from_file.config == from_run.config and from_file.built_from == from_run.built_from
    for name, weight in from_run.potential.state_dict().items():
        assert torch.equal(weight, from_file.potential.state_dict()[name]), name
    for name, origin in (("a", tmp_path / "model.pt"), ("b", source)):
        train(make_config(tmp_path / name, files["high"], {"model": str(origin)}, None, {"epochs": 1}))
    states = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in "ab"]
    for one, other in zip(*(s.potential.state_dict().values() for s in states), strict=True):
        assert torch.equal(one, other)


def test_deployed_file_without_training_state(source, tmp_path):
    deploy(source / "checkpoints" / "best.ckpt", tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as old, zipfile.ZipFile(tmp_path / "old.pt", "w") as new:
        for item in old.infolist():
            if not item.filename.endswith("extra/training_state"):
                new.writestr(item.filename, old.read(item))
    read_metadata(tmp_path / "old.pt")
    with pytest.raises(ModelFileError, match="deployed without what a training needs"):
        load_training_state(tmp_path / "old.pt")


def test_checkpoints_of_the_first_format_are_read(source, tmp_path):
    content = torch.load(source / "checkpoints" / "best.ckpt", weights_only=True)
    now = load_checkpoint(source / "checkpoints" / "best.ckpt")
    content["equipot"]["format"] = 1
    del content["equipot"]["built_from"]
    del content["equipot"]["statistics"]["levels"]
    del content["equipot"]["config"]["fine_tune"]
    del content["equipot"]["config"]["data"]["level"]
    torch.save(content, tmp_path / "old.ckpt")
    before = load_checkpoint(tmp_path / "old.ckpt")
    assert before.built_from == now.built_from
    assert before.config.model == now.config.model


def test_learning_rate_is_searched_from_the_weights_to_start_from(source, files, tmp_path, monkeypatch):
    """From the trained model, whose frozen parts stay."""
    starts = []
    monkeypatch.setattr(
        "equipot.training.trial.make_optimizer",
        lambda potential, training, factors: (
            starts.append((potential, {k: v.clone() for k, v in potential.state_dict().items()}))
            or make_optimizer(potential, training, factors)
        ),
    )
    settings = {"model": str(source), "freeze": ["embedding"]}
    config = make_config(tmp_path / "run", files["low"], settings, model=None)
    search = find_learning_rate(config, steps=4)
    assert len(search.rates) == 4
    (potential, before), trained = starts[0], load_checkpoint(source / "checkpoints" / "best.ckpt").potential
    after = potential.state_dict()
    for name, weight in trained.state_dict().items():
        if not name.startswith("scale_shift."):  # fitted to the data
            assert torch.equal(before[name], weight)
    frozen = [name for name, weight in potential.named_parameters() if not weight.requires_grad]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_learning_rate_is_searched_on_several_levels(files, tmp_path):
    config = make_config(tmp_path / "run", two_levels(files))
    assert len(find_learning_rate(config, steps=4).rates) == 4


def test_forces_alone_keep_the_reference_energies(source, files, tmp_path):
    config = make_config(
        tmp_path / "run",
        files["low"],
        {"model": str(source)},
        model=None,
        training={"loss": {"energy": 0.0, "forces": 1.0}},
        labels={"energy": None},
    )
    result = train(config)
    before, after = (
        load_checkpoint(p).potential for p in (source / "checkpoints" / "best.ckpt", result.best_checkpoint)
    )
    assert torch.equal(before.scale_shift.shift, after.scale_shift.shift)


# --- the shortest distances of what was trained on


def shortest(directory):
    """By ASE, of the frames that the split of a training names."""
    found = {}
    for file, index in Split.load(directory / "split.json").train:
        atoms = ase.io.read(file, index)
        for i in range(4):
            for j in range(i):
                pair = "-".join(sorted((atoms.symbols[i], atoms.symbols[j])))
                found[pair] = min(atoms.get_distance(i, j), found.get(pair, np.inf))
    return found


def test_shortest_distances_are_of_all_trainings(source, files, tmp_path):
    """In checkpoint, deployed file and a fine-tuning from either; a resumed training keeps them."""
    of_source = load_checkpoint(source / "checkpoints" / "best.ckpt").shortest_distances
    assert of_source == pytest.approx(shortest(source), rel=1e-9)
    deploy(source / "checkpoints" / "best.ckpt", tmp_path / "model.pt")
    assert read_metadata(tmp_path / "model.pt").shortest_distances == of_source
    tuned = train(make_config(tmp_path / "run", files["alloy"], {"model": str(tmp_path / "model.pt")}, None))
    own = shortest(tuned.directory)
    assert set(own) == {"Cu-Cu", "Ag-Cu", "Ag-Ag"}
    expected = own | {"Cu-Cu": min(own["Cu-Cu"], of_source["Cu-Cu"])}
    last = tuned.directory / "checkpoints" / "last.ckpt"
    assert load_checkpoint(last).shortest_distances == pytest.approx(expected, rel=1e-9)
    config = make_config(
        tmp_path / "run", files["alloy"], {"model": str(tmp_path / "model.pt")}, None, {"epochs": 3}
    )
    train(config, resume=tuned.directory)
    assert load_checkpoint(last).shortest_distances == pytest.approx(expected, rel=1e-9)


def test_shortest_distances_of_a_source_that_does_not_say(source, files, tmp_path):
    """Then those of the new data alone would be too long."""
    checkpoint = dataclasses.replace(load_training_state(source), shortest_distances={})
    config = make_config(tmp_path / "run", files["high"], {"model": str(source)})
    datasets = load_datasets(config.data, config.model.cutoff)
    assert begin_training(config, datasets, checkpoint, None, "cpu").shortest_distances == {}
    # A training from before they were kept, resumed: they are read from its data.
    config = make_config(tmp_path / "run", files["low"])
    datasets = load_datasets(config.data, config.model.cutoff)
    assert set(begin_training(config, datasets, None, checkpoint, "cpu").shortest_distances) == {"Cu-Cu"}
