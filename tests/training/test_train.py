"""A whole training on a tiny data set: what it writes, says and refuses."""

import json

import ase.io
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure

from equipot.data.load import load_datasets
from equipot.data.text import counted
from equipot.deploy.checkpoint import load_checkpoint
from equipot.errors import DeviceError, TrainingError
from equipot.evaluation.metrics import summary
from equipot.run_directory import RunDirectory
from equipot.training import stopping
from equipot.training.history import History, columns, plot_learning_curve
from equipot.training.loggers import make_loggers
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.report import describe_failure
from equipot.training.results import compare_dataset
from equipot.training.run import train

EVALUATION = ("errors.json", "parity.png")


@pytest.fixture(scope="module")
def trained(config_in, structures, tmp_path_factory):
    data = {"train_frames": 8, "validation": 3, "test": str(structures.with_name("test.xyz"))}
    config = config_in(tmp_path_factory.mktemp("trained") / "run", data=data)
    return config, train(config)


def rows_of(directory):
    history = History(directory / "metrics.csv")
    history.start(epochs_done=1e9)
    return history.rows


def test_run_directory_is_complete(trained):
    _, result = trained
    names = {str(p.relative_to(result.directory)) for p in result.directory.rglob("*") if p.is_file()}
    assert names == {
        ".lock",
        "config.yaml",
        "split.json",
        "statistics.json",
        "log.txt",
        "metrics.csv",
        "metrics.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "plots/learning_curve.png",
        *(f"evaluation/{part}/{name}" for part in ("validation", "test") for name in EVALUATION),
        "sessions.json",
        "report.html",
    }
    log = (result.directory / "log.txt").read_text()
    for text in (
        "8 training, 3 validation, 5 test",
        "species Cu",
        "least squares",
        "epoch 4/4",
        "Best epoch",
        "Best weights on the validation set, 3 frames, 12 atoms",
        "Best weights on the test set, 5 frames, 20 atoms",
        "Worst frames by energy",
    ):
        assert text in log
    assert (result.directory / "metrics.csv").read_text().splitlines()[0] == ",".join(columns())


def test_model_is_built_from_the_statistics_of_its_training_frames(trained):
    config, result = trained
    statistics = load_datasets(config.data, config.model.cutoff).statistics
    assert json.loads((result.directory / "statistics.json").read_text()) == statistics.to_dict()
    assert statistics.force_rms != 1 and statistics.avg_num_neighbors > 1
    checkpoint = load_checkpoint(result.best_checkpoint)
    assert checkpoint.potential.scale_shift.scale.tolist() == [statistics.force_rms]
    assert checkpoint.potential.scale_shift.shift.tolist() == statistics.atomic_energies
    assert checkpoint.built_from["avg_num_neighbors"] == statistics.avg_num_neighbors


def test_loss_falls(trained):
    rows = rows_of(trained[1].directory)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["train_loss"] < 0.9 * rows[0]["train_loss"]


def test_best_checkpoint_reproduces_its_errors_from_averaged_weights(trained):
    config, result = trained
    datasets = load_datasets(config.data, config.model.cutoff)

    def errors(weights, name):
        checkpoint = load_checkpoint(result.best_checkpoint, weights=weights)
        ids = getattr(datasets.split, name)
        return summary(
            compare_dataset(checkpoint.potential, getattr(datasets, name), ids, torch.device("cpu"))
        )

    validation = errors("average", "validation")
    # summed by another program in another order of float64 sums
    assert validation == pytest.approx(without_loss(result.metrics["validation"]), rel=1e-9)
    assert errors("average", "test") == pytest.approx(result.metrics["test"], rel=1e-9)
    assert errors("last", "validation")["forces_mae"] != pytest.approx(validation["forces_mae"], rel=1e-3)


def without_loss(metrics):
    return {name: value for name, value in metrics.items() if name != "loss"}


def test_metrics_name_the_best_epoch(trained):
    metrics = json.loads((trained[1].directory / "metrics.json").read_text())
    best = min(rows_of(trained[1].directory), key=lambda row: row["validation_loss"])
    assert metrics["stopped"] == stopping.FINISHED
    assert metrics["best_epoch"] == best["epoch"]
    # the CSV keeps eight digits
    assert metrics["validation"]["forces_mae"] == pytest.approx(best["validation_forces_mae"], rel=1e-7)


def test_best_weights_are_not_the_last_where_the_loss_rises(make_config, no_plot):
    """After two epochs the learning rate is that of the averaging, which is far too high."""
    swa = {"from_epoch": 2, "learning_rate": 10.0}
    result = train(make_config(training={"ema": None, "swa": swa, "optimizer": "adam"}))
    rows = rows_of(result.directory)
    best = min(rows[:2], key=lambda row: row["validation_loss"])
    assert all(row["validation_loss"] > 10 * best["validation_loss"] for row in rows[2:])
    assert result.metrics["best_epoch"] == best["epoch"]
    content = torch.load(result.best_checkpoint, weights_only=True)
    assert content["global_step"] == best["step"]
    # the CSV keeps eight digits
    assert content["equipot"]["validation"]["loss"] == pytest.approx(best["validation_loss"], rel=1e-7)
    assert result.metrics["validation"] == content["equipot"]["validation"]
    assert torch.load(result.last_checkpoint, weights_only=True)["global_step"] == rows[-1]["step"]


def test_time_that_ends_before_the_learning_rate_has_fallen(make_config, monkeypatch, no_plot, capsys):
    def when_an_epoch_is_done(self):
        return stopping.OUT_OF_TIME if self.epochs_done >= 1 else None

    for training, expected in ({"epochs": 9}, True), ({"schedule": {"kind": "constant"}}, False):
        with monkeypatch.context() as patch:
            patch.setattr(TrainingMonitor, "_reason_to_stop", when_an_epoch_is_done)
            result = train(make_config(training=training), overwrite=True)
        assert result.stopped == stopping.OUT_OF_TIME
        assert ("training with training.schedule.in_time=true" in capsys.readouterr().out) == expected


def test_settings_of_plateaus_on_a_cosine_are_said(make_config, no_plot, capsys):
    train(make_config(training={"epochs": 1, "schedule": {"patience": 1}}))
    assert "training.schedule.patience has no effect with `kind: cosine`" in capsys.readouterr().out


def gradients_of(monkeypatch, config) -> list[torch.Tensor]:
    """All weights' gradients together, as the optimizer gets them in each step of a training."""
    seen = []

    def keep(module, optimizer):
        weights = [weight for weight in module.potential.parameters() if weight.requires_grad]
        seen.append(torch.cat([weight.grad.flatten() for weight in weights]))

    with monkeypatch.context() as patch:
        patch.setattr(PotentialModule, "on_before_optimizer_step", keep)
        train(config)
    return seen


def test_gradient_is_clipped_to_its_largest_norm(make_config, monkeypatch, no_plot):
    def gradients(name, clip):
        return gradients_of(monkeypatch, make_config(name, training={"epochs": 2, "gradient_clip": clip}))

    free = gradients("free", None)
    norm = free[0].norm().item()
    clipped = gradients("clipped", norm / 3)
    # the same direction; torch adds 1e-6 to the norm
    torch.testing.assert_close(clipped[0], free[0] / 3, rtol=1e-5, atol=0)
    assert len(clipped) == 8 and all(gradient.norm() <= norm / 3 for gradient in clipped)
    for one, other in zip(free, gradients("wide", 1e3 * norm), strict=True):
        assert torch.equal(one, other)  # smaller ones are left alone


def test_same_seed_gives_the_same_weights_and_another_seed_does_not(make_config, no_plot):
    def weights(name, seed):
        result = train(make_config(name, training={"epochs": 1}, run={"seed": seed}))
        return torch.load(result.last_checkpoint, weights_only=True)["state_dict"][
            "potential.network.embedding"
        ]

    assert torch.equal(weights("a", 3), weights("b", 3))
    assert not torch.equal(weights("c", 3), weights("d", 4))


def test_occupied_directory_is_refused_until_overwriting_is_allowed(make_config, no_plot):
    config = make_config(training={"epochs": 1})
    result = train(config)
    before = result.last_checkpoint.read_bytes()
    with pytest.raises(TrainingError, match=r"is not empty: .* --resume .*run, replace it with --overwrite"):
        train(config)
    assert result.last_checkpoint.read_bytes() == before
    mine = [result.directory / "notes.md", result.directory / "checkpoints" / "kept.ckpt"]
    for path in mine:
        path.write_text("mine")
    for folder in ("tensorboard", "wandb"):
        (result.directory / folder).mkdir()
        (result.directory / folder / "events.old").touch()
    train(make_config(training={"epochs": 2}), overwrite=True)
    assert [row["epoch"] for row in rows_of(result.directory)] == [1, 2]
    assert [path.read_text() for path in mine] == ["mine", "mine"]
    assert not list(result.directory.rglob("events.old"))


def test_a_folder_without_a_training_is_never_overwritten(make_config):
    config = make_config()
    config.run.directory.mkdir()
    note = config.run.directory / "config.yaml"
    note.write_text("of another program")
    with pytest.raises(TrainingError, match="holds no earlier training"):
        train(config, overwrite=True)
    assert list(config.run.directory.iterdir()) == [note]
    assert note.read_text() == "of another program"


def test_a_second_training_in_the_same_directory_is_refused(make_config, no_plot):
    config = make_config(training={"epochs": 1})
    other = RunDirectory(config.run.directory)
    other.lock()
    with pytest.raises(TrainingError, match="Another training is writing to"):
        train(config)
    assert [path.name for path in config.run.directory.iterdir()] == [".lock"]
    other.unlock()
    train(config)
    train(config, overwrite=True)  # the first one has let go


def test_directory_filled_while_the_data_are_read_is_refused(make_config, monkeypatch):
    config = make_config()

    def load_slowly(*arguments):
        config.run.directory.mkdir()
        (config.run.directory / "theirs").touch()
        return load_datasets(*arguments)

    monkeypatch.setattr("equipot.training.preparation.load_datasets", load_slowly)
    with pytest.raises(TrainingError, match="is not empty"):
        train(config)
    assert not (config.run.directory / "config.yaml").exists()


def test_bad_data_leave_no_run_directory(make_config):
    config = make_config(training={"loss": {"stress": 1.0}}, data={"labels": {"stress": "stress"}})
    with pytest.raises(
        TrainingError, match=r"loss\.stress is above 0, but none of the 10 training frames has stress"
    ):
        train(config)
    assert not config.run.directory.exists()


def test_diverging_training_stops_with_advice_and_keeps_checkpoints(make_config):
    config = make_config(training={"learning_rate": 1e300, "epochs": 3})
    with pytest.raises(TrainingError, match=r"The loss is (nan|inf) in epoch 1, batch \d .* lower") as caught:
        train(config)
    assert "checkpoints" not in str(caught.value)  # there are none yet
    assert not (config.run.directory / "checkpoints" / "best.ckpt").exists()


def test_result_worse_than_no_model_is_said(make_config, no_plot, capsys):
    train(make_config(training={"learning_rate": 100.0, "epochs": 1}))
    assert "Warning: the best validation force error" in capsys.readouterr().out


def test_failure_is_an_error_above_the_forces_or_not_a_number(make_config):
    training = make_config().training
    assert describe_failure({"forces_rmse": 0.9}, 1.0, training) == ""
    assert "RMSE 1.1 eV/Å" in describe_failure({"forces_rmse": 1.1}, 1.0, training)
    assert "RMSE nan eV/Å" in describe_failure({"forces_rmse": float("nan")}, 1.0, training)
    energies_only = make_config(training={"loss": {"forces": 0.0}}).training
    assert describe_failure({"forces_rmse": 1.1}, 1.0, energies_only) == ""


def test_counts_are_grammatical():
    counts = (counted(1, "epoch"), counted(12345, "epoch"), counted(1.25, "epoch"))
    assert counts == ("1 epoch", "12345 epochs", "1.25 epochs")


def test_learning_curve_has_labels_and_a_linear_epoch_axis(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    rows = [
        {"epoch": n, "learning_rate": 0.01, "train_loss": 1 / n, "validation_loss": 1 / n}
        | {f"{part}_forces_mae": 0.12 + 0.1 / n for part in ("train", "validation")}
        for n in range(1, 21)
    ]
    plot_learning_curve(rows, tmp_path / "curve.png", 20)
    forces, _, rate = figures[0].axes
    assert (forces.get_xscale(), forces.get_yscale()) == ("linear", "log")
    low, high = forces.get_ylim()
    assert sum(low <= tick <= high for tick in forces.get_yticks()) >= 4
    assert rate.get_ylim() == (0.005, 0.02)


def test_early_stopping(make_config, no_plot):
    # Nothing is an improvement if it must be larger than the loss itself.
    settings = {"epochs": 9, "early_stopping": {"patience": 2, "min_delta": 1e9}}
    result = train(make_config(training=settings))
    assert result.stopped == stopping.NO_PROGRESS
    assert [row["epoch"] for row in rows_of(result.directory)] == [1, 2, 3]


def test_early_stopping_counts_from_the_last_stage(make_config, no_plot):
    """While a weight of the loss changes nothing counts: the fifth epoch is the first, two more use it up."""
    settings = {"epochs": 9, "early_stopping": {"patience": 2, "min_delta": 1e9}}
    settings["loss"] = {"energy": {"start": 1.0, "end": 5.0, "from_epoch": 4}}
    result = train(make_config(training=settings))
    assert result.stopped == stopping.NO_PROGRESS
    assert rows_of(result.directory)[-1]["epoch"] == 7


def test_time_budget_ends_the_training(make_config, no_plot):
    result = train(make_config(training={"epochs": 1000, "max_minutes": 0.01}))
    assert result.stopped == stopping.OUT_OF_TIME
    assert result.best_checkpoint is not None
    assert rows_of(result.directory)[-1]["time_s"] < 5


def test_optional_parts_run_together(make_config, no_plot):
    training = {
        "epochs": 2,
        "optimizer": "adamw",
        "weight_decay": 0.01,
        "schedule": {"kind": "cosine", "warmup_epochs": 1},
        "loss": {"kind": "huber", "energy": {"start": 1, "end": 5, "from_epoch": 1}},
        "ema": None,
        "swa": {"from_epoch": 1, "learning_rate": 1e-4},
    }
    result = train(make_config(training=training, run={"logging": {"tensorboard": True}}))
    assert load_checkpoint(result.last_checkpoint).weights == "swa"
    log = (result.directory / "log.txt").read_text()
    assert "Loss: weight of energy goes from 1 to 5 after epoch 1; the best epoch is judged with the" in log
    assert "Weights: averaged with equal shares after epoch 1, learning rate 0.0001; that average" in log
    assert list((result.directory / "tensorboard").glob("events*"))


@pytest.mark.parametrize("weight", [0.0, 10.0])
def test_stress_that_is_not_trained_on_is_said_once(weight, make_config, tmp_path, no_plot):
    """It is in the data, and the default weight leaves it out."""
    crystals = []
    for seed in range(8):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.1, seed=seed)
        atoms.calc = EMT()
        atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
        crystals.append(atoms)
    ase.io.write(tmp_path / "crystals.xyz", crystals)
    data = {"train": str(tmp_path / "crystals.xyz"), "validation": 2}
    result = train(make_config(data=data, training={"epochs": 1, "loss": {"stress": weight}}))
    lines = (result.directory / "log.txt").read_text().splitlines()
    said = [line for line in lines if line.startswith("Loss:")]
    expected = (
        "Loss: labels with a weight of 0 in training.loss are not trained on: stress of 6 frames; crystals, "
        "and dynamics at constant pressure, need the stress"
    )
    assert said == ([] if weight else [expected])


def test_wandb_logger_follows_the_configuration(make_config, tmp_path):
    # A run of wandb starts a service of its own, which takes seconds; what it is told is tested here.
    config = make_config(run={"logging": {"wandb": {"project": "copper", "mode": "offline"}}})
    (logger,) = make_loggers(config, RunDirectory(tmp_path / "run"))
    assert isinstance(logger, WandbLogger)
    told = logger._wandb_init
    assert (told["project"], told["name"], told["mode"]) == ("copper", "run", "offline")
    assert told["dir"] == str(tmp_path / "run")
    assert told["config"]["training"]["epochs"] == 4
    assert "anonymous" not in told  # of which wandb warns


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_absent_gpu_is_an_error(make_config):
    config = make_config(run={"device": "cuda"})
    with pytest.raises(DeviceError, match="no GPU"):
        train(config)
    assert not config.run.directory.exists()


def test_unsupported_strategy_is_an_error(make_config):
    with pytest.raises(DeviceError, match="'fsdp'; supported: auto, ddp"):
        train(make_config(run={"strategy": "fsdp"}))


def test_nothing_is_printed_but_our_own_lines(make_config, no_plot, capfd, recwarn):
    train(make_config(training={"epochs": 1}))
    lines = capfd.readouterr().out.splitlines()
    starts = (
        "equipot",
        "Data:",
        "Atomic",
        "Neighbors:",
        "Model:",
        "Training:",
        "Memory:",
        "epoch",
        "All",
        "Best",
        "Learning",
        "Report",
        "Warning: the best validation",
    )
    tables = "┏┃┡│└"
    assert all(line.startswith((*starts, *tables)) for line in lines), lines
    assert not [warning for warning in recwarn if "lightning" in warning.filename]


def test_training_from_a_cache_evaluates_its_sets(make_config, tmp_path, no_plot):
    config = make_config(training={"epochs": 1}, data={"cache": str(tmp_path / "cache")})
    result = train(config)
    assert (result.directory / "evaluation" / "validation" / "errors.json").is_file()
