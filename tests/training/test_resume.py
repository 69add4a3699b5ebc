"""A training that was interrupted and resumed ends with the bits of one that was not."""

import csv
import dataclasses
import itertools
import os
import random
import shutil
import signal
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from equipot import cli
from equipot.deploy.checkpoint import load_checkpoint
from equipot.errors import DataError, TrainingError
from equipot.files import write_json
from equipot.models.predict import predict
from equipot.run_directory import RunDirectory
from equipot.training import monitor, stopping
from equipot.training.checkpoints import check_same_statistics
from equipot.training.module import PotentialModule
from equipot.training.monitor import TrainingMonitor
from equipot.training.run import AUTO, train

# Everything that has a state or depends on the step: warm-up and plateau, a weight of the loss that changes,
# averaging, early stopping, clipping, a last small batch.
EVERYTHING = {
    "epochs": 6,
    "schedule": {"kind": "plateau", "warmup_epochs": 1, "patience": 0, "factor": 0.7},
    "loss": {"energy": {"start": 0.1, "end": 10.0, "from_epoch": 1, "to_epoch": 4}},
    "early_stopping": {"patience": 20},
    "gradient_clip": 0.5,
    "ema": 0.9,
}
TIMES = ("time_s", "epoch_s")

pytestmark = pytest.mark.usefixtures("no_plot")


def interrupt_after(monkeypatch, step: int, number: int = signal.SIGTERM) -> None:
    """Send this process a signal once ``step`` optimizer steps are done, as a batch system would."""
    original = TrainingMonitor.on_train_batch_end

    def with_signal(self, trainer, *arguments):
        if trainer.global_step == step:
            os.kill(os.getpid(), number)
        original(self, trainer, *arguments)

    monkeypatch.setattr(TrainingMonitor, "on_train_batch_end", with_signal)


def content(path):
    return torch.load(path, weights_only=True)


def rows_of(directory):
    with (directory / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def history(directory):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows_of(directory)]


def assert_same(one, other):
    """Checkpoints equal bit for bit in weights, averages, optimizer and schedule."""
    one, other = content(one), content(other)
    for key in ("state_dict", "optimizer_states", "equipot_resume"):
        assert_equal(one[key], other[key], key)
    for kind in ("ema", "swa"):
        assert_equal(one["equipot"][kind], other["equipot"][kind], kind)
    assert one["equipot"]["validation"] == other["equipot"]["validation"]


def assert_equal(one, other, place):
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}[{index}]")
    else:
        assert one == other, place


@pytest.fixture(scope="module")
def uninterrupted(config_in, tmp_path_factory):
    return train(config_in(tmp_path_factory.mktemp("whole"), training=EVERYTHING))


# 10 training frames in batches of 3 are 4 steps per epoch: in the first epoch, in the middle of the third,
# before and at its end, and in the last epoch. A worker process is given the first steps before Lightning
# knows the epoch.
@pytest.mark.parametrize("step, workers", [(1, 0), (10, 0), (11, 0), (12, 0), (12, 1), (23, 0)])
def test_interrupted_and_resumed_equals_uninterrupted(make_config, monkeypatch, uninterrupted, step, workers):
    config = make_config("broken", training=EVERYTHING, run={"workers": workers})
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        broken = train(config)
    assert broken.stopped == stopping.INTERRUPTED
    assert content(broken.last_checkpoint)["global_step"] == step
    resumed = train(config, resume=broken.directory)
    assert resumed.stopped == stopping.FINISHED
    assert_same(resumed.last_checkpoint, uninterrupted.last_checkpoint)
    assert_same(resumed.best_checkpoint, uninterrupted.best_checkpoint)
    assert history(resumed.directory) == history(uninterrupted.directory)
    assert resumed.metrics["best_epoch"] == uninterrupted.metrics["best_epoch"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_save_and_the_command_exits_with_130(make_config, monkeypatch, tmp_path, number):
    config = make_config("broken", training=EVERYTHING)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    interrupt_after(monkeypatch, 3, number)
    monkeypatch.setattr("sys.argv", ["equipot", "train", str(file)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
    assert content(config.run.directory / "checkpoints" / "last.ckpt")["global_step"] == 3


def test_a_directory_that_was_removed_is_not_made_again(make_config, monkeypatch, tmp_path):
    config = make_config("gone", training={"epochs": 2})
    root = config.run.directory
    original = TrainingMonitor.on_train_batch_end

    def remove(self, trainer, *arguments):
        if trainer.global_step == 2:
            shutil.rmtree(root)
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *arguments)

    monkeypatch.setattr(TrainingMonitor, "on_train_batch_end", remove)
    with pytest.raises(TrainingError, match=r"last\.ckpt: .*Its folder was removed while the training ran"):
        train(config)
    assert not root.exists()


def test_two_interruptions_within_one_epoch(make_config, monkeypatch, uninterrupted):
    config = make_config("twice", training=EVERYTHING)
    checkpoint, validated = None, []
    for step in (9, 10):
        with monkeypatch.context() as patch:
            interrupt_after(patch, step)
            checkpoint = train(config, resume=checkpoint).last_checkpoint
        validated.append(content(checkpoint)["equipot"]["validation"])
    assert validated[0] == validated[1] != {}  # of the epoch before
    resumed = train(config, resume=checkpoint)
    assert_same(resumed.last_checkpoint, uninterrupted.last_checkpoint)
    assert history(resumed.directory) == history(uninterrupted.directory)


# A rate at which the loss hardly falls: every epoch but the first counts as one without improvement.
PATIENT = {
    "epochs": 9,
    "learning_rate": 1e-9,
    "schedule": {"kind": "plateau", "patience": 2, "factor": 0.5, "min_learning_rate": 0.0},
    "early_stopping": {"patience": 5, "min_delta": 1e9},
    "ema": None,
}


# Within an epoch, and at the end of one: schedule and stop have seen one and two epochs without improvement.
@pytest.mark.parametrize("step", [10, 12])
def test_patience_that_is_half_used_stays_so(make_config, monkeypatch, step):
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        broken = train(make_config(training=PATIENT))
    assert broken.stopped == stopping.INTERRUPTED
    resumed = train(make_config(training=PATIENT), resume=broken.directory)
    assert resumed.stopped == stopping.NO_PROGRESS
    rates = [float(row["learning_rate"]) for row in history(resumed.directory)]
    assert rates == [1e-9] * 4 + [0.5e-9] * 2


@pytest.fixture
def clock(monkeypatch):
    """The time by which trainings go: one second for each optimizer step, and what is added to ``now``."""
    clock = SimpleNamespace(now=1000.0)
    original = TrainingMonitor.on_train_batch_end

    def tick(*arguments):
        clock.now += 1
        original(*arguments)

    monkeypatch.setattr(TrainingMonitor, "on_train_batch_end", tick)
    monkeypatch.setattr(monitor, "clock", lambda: clock.now)
    return clock


# Within an epoch, at the end of one, and within that which was interrupted before.
@pytest.mark.parametrize("steps", [(6, 8), (5, 6)])
def test_time_goes_on_from_that_of_the_checkpoint(make_config, monkeypatch, clock, steps):
    checkpoint = None
    for step in steps:
        with monkeypatch.context() as patch:
            interrupt_after(patch, step)
            checkpoint = train(make_config(training={"epochs": 3}), resume=checkpoint).last_checkpoint
        clock.now += 5000  # does not count
    resumed = train(make_config(training={"epochs": 3}), resume=checkpoint)
    times = [[float(row[name]) for name in TIMES] for row in rows_of(resumed.directory)]
    assert times == [[4, 4], [8, 4], [12, 4]]
    assert resumed.metrics["training_seconds"] == 12


def test_each_start_has_the_whole_time_budget(make_config, clock):
    settings = {"max_minutes": 6 / 60}
    first = train(make_config(training=settings))
    second = train(make_config(training=settings), resume=first.directory)
    assert first.stopped == second.stopped == stopping.OUT_OF_TIME
    assert [row["epoch"] for row in rows_of(second.directory)] == ["1", "2", "3"]  # 12 steps


# A cosine from the second step on; a weight that is settled after three quarters of all epochs.
IN_TIME = {
    "epochs": 8,
    "max_minutes": 16 / 60,  # four epochs of four steps
    "loss": {"energy": {"start": 1.0, "end": 100.0, "from_epoch": 2, "to_epoch": 6}},
    "schedule": {"in_time": True, "min_learning_rate": 1e-5},
}


def test_a_schedule_that_goes_by_the_time_ends_with_it(make_config, monkeypatch, clock, caplog):
    rates, weights = [], []
    original = PotentialModule.training_step

    def watched(module, step, batch_idx):
        rates.append(module.optimizers().param_groups[0]["lr"])
        weights.append(module.loss.weights_at(module.epoch)["energy"])
        original(module, step, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", watched)
    caplog.set_level("INFO", "equipot")
    result = train(make_config(training=IN_TIME))
    assert result.stopped == stopping.OUT_OF_TIME
    done = np.array([max(n / 32, (n / 16 - 0.05) / 0.95) for n in range(16)])  # by epochs or by the time
    assert rates == pytest.approx(0.5 * (0.02 - 1e-5) * (1 + np.cos(np.pi * done)) + 1e-5)
    assert weights == pytest.approx(100 ** np.clip((8 * done - 2) / 4, 0, 1))
    assert caplog.text.count("Of the 8 epochs there is time for about 4: the learning rate") == 1
    said = (result.directory / "log.txt").read_text()
    assert "training.max_minutes used up, after 4 epochs." in said
    assert "Resume with" not in said
    assert "learning rate was still" not in said

    again = train(make_config(training=IN_TIME), resume=AUTO)
    assert again.stopped == stopping.FINISHED
    with pytest.raises(TrainingError, match=r"has used its time .* To go on, raise training.max_minutes\."):
        train(make_config(training=IN_TIME), resume=result.directory)
    more = train(make_config(training=IN_TIME | {"max_minutes": 1}), resume=result.directory)
    assert more.stopped == stopping.FINISHED
    assert len(rates) == 8 * 4
    assert rates[16] == pytest.approx(0.01, rel=1e-2)  # four of eight epochs


def test_time_to_go_by_counts_over_an_interruption(make_config, monkeypatch, clock):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 10)
        broken = train(make_config(training=IN_TIME))
    clock.now += 5000
    resumed = train(make_config(training=IN_TIME), resume=broken.directory)
    assert resumed.stopped == stopping.OUT_OF_TIME
    assert content(resumed.last_checkpoint)["global_step"] == 16


def test_a_training_that_was_killed_after_its_time_is_validated(make_config, monkeypatch, clock):
    settings = IN_TIME | {"max_minutes": 3 / 60}  # within the first epoch
    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "on_validation_start", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(make_config(training=settings))
    resumed = train(make_config(training=settings), resume=AUTO)
    assert resumed.stopped == stopping.OUT_OF_TIME
    assert resumed.metrics["best_epoch"] == 1.0  # one step more, the fourth
    assert load_checkpoint(resumed.best_checkpoint).validation
    assert train(make_config(training=settings), resume=AUTO).metrics == resumed.metrics


def test_a_training_that_was_killed_while_evaluated_is_out_of_time(make_config, clock):
    result = train(make_config(training=IN_TIME))
    metrics = RunDirectory(result.directory).metrics
    write_json(metrics, {key: value for key, value in result.metrics.items() if key != "stopped"})
    assert train(make_config(training=IN_TIME), resume=AUTO).stopped == stopping.OUT_OF_TIME
    assert train(make_config(training=IN_TIME), resume=AUTO).metrics == result.metrics


def test_best_weights_of_an_epoch_that_was_cut_short_stay(make_config, monkeypatch, clock):
    settings = IN_TIME | {"max_minutes": 14 / 60}
    result = train(make_config(training=settings))
    assert result.metrics["best_epoch"] == 3.5
    with monkeypatch.context() as patch:
        interrupt_after(patch, 15)
        resumed = train(make_config(training=settings | {"max_minutes": 1}), resume=result.directory)
    assert resumed.metrics["best_epoch"] == 3.5


def test_early_stopping_counts_from_when_the_time_has_reached_the_last_stage(make_config, clock):
    settings = IN_TIME | {
        "epochs": 16,
        "max_minutes": 40 / 60,
    }  # ten, the stage at 7.5
    settings |= {"early_stopping": {"patience": 1, "min_delta": 1e9}}
    settings["loss"] = {"energy": {"start": 1.0, "end": 100.0, "from_epoch": 2, "to_epoch": 12}}
    result = train(make_config(training=settings))
    assert (result.stopped, result.metrics["epochs"]) == (stopping.NO_PROGRESS, 9)  # the eighth is the first


def test_time_that_suffices_changes_no_bit(make_config, monkeypatch):
    monkeypatch.setattr(monitor, "clock", itertools.count(0.0, 0.01).__next__)  # between any two looks
    by_epochs = {"schedule": {"min_learning_rate": 1e-5}}
    checkpoints = [
        train(make_config(name, training=IN_TIME | settings)).last_checkpoint
        for name, settings in (
            ("by_time", {"max_minutes": 1}),
            ("limited", {"max_minutes": 1} | by_epochs),
            ("unlimited", {"max_minutes": None} | by_epochs),
        )
    ]
    assert_same(checkpoints[0], checkpoints[1])
    assert_same(checkpoints[0], checkpoints[2])


def test_best_weights_of_before_the_interruption_stay(make_config, monkeypatch):
    """The third epoch and the fourth have so high a rate that they are worse."""
    settings = {"ema": None, "swa": {"from_epoch": 2, "learning_rate": 10.0}}
    with monkeypatch.context() as patch:
        interrupt_after(patch, 9)
        broken = train(make_config(training=settings))
    best = content(broken.best_checkpoint)
    resumed = train(make_config(training=settings), resume=broken.directory)
    assert resumed.stopped == stopping.FINISHED
    assert content(resumed.best_checkpoint)["global_step"] == best["global_step"] <= 8
    assert resumed.metrics["best_epoch"] == best["global_step"] / 4


def test_nothing_in_a_training_is_random(make_config, monkeypatch, uninterrupted):
    """Frames are ordered by seed and epoch alone, so a checkpoint needs no states of random generators."""
    original = PotentialModule.training_step

    def scrambled_step(module, step, batch_idx):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(module.global_step)
        original(module, step, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", scrambled_step)
    result = train(make_config("scrambled", training=EVERYTHING))
    assert_same(result.last_checkpoint, uninterrupted.last_checkpoint)
    assert history(result.directory) == history(uninterrupted.directory)


SWA = {
    "epochs": 3,
    "ema": 0.9,
    "swa": {"from_epoch": 1, "learning_rate": 0.001},
    "schedule": {"kind": "constant"},
}


@pytest.fixture(scope="module")
def averaged(config_in, tmp_path_factory):
    return train(config_in(tmp_path_factory.mktemp("averaged"), training=SWA))


# Under the exponential average, where the other one begins, and within it.
@pytest.mark.parametrize("step", [3, 4, 9])
def test_equal_averages_go_on_exactly(make_config, monkeypatch, averaged, step):
    with monkeypatch.context() as patch:
        interrupt_after(patch, step)
        broken = train(make_config("broken", training=SWA))
    resumed = train(make_config("broken", training=SWA), resume=broken.directory)
    assert_same(resumed.last_checkpoint, averaged.last_checkpoint)
    assert history(resumed.directory) == history(averaged.directory)


def test_checkpoints_say_which_average_they_hold(averaged):
    assert load_checkpoint(averaged.last_checkpoint).weights == "swa"
    assert content(averaged.last_checkpoint)["equipot"]["ema"] is None
    assert [row["learning_rate"] for row in history(averaged.directory)] == ["0.02", "0.001", "0.001"]


@pytest.mark.parametrize("optimizer", ["amsgrad", "muon"])
def test_other_optimizers_go_on_exactly(make_config, monkeypatch, optimizer):
    training = {"epochs": 2, "optimizer": optimizer, "weight_decay": 1e-3, "learning_rate": 0.003}
    whole = train(make_config("whole", training=training))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
        broken = train(make_config("broken", training=training))
    resumed = train(make_config("broken", training=training), resume=broken.directory)
    assert_same(resumed.last_checkpoint, whole.last_checkpoint)
    assert history(resumed.directory) == history(whole.directory)


def trained_until_killed(config, step: int, where: str) -> None:
    torch.set_num_threads(1)  # those of the process that was forked are not there
    original = TrainingMonitor.on_train_batch_end

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def end_of_batch(self, trainer, *arguments):
        if trainer.global_step == step and where == "writing":
            Path.replace = kill  # everything is written, under the temporary name
        original(self, trainer, *arguments)
        if trainer.global_step == step:
            kill()

    TrainingMonitor.on_train_batch_end = end_of_batch
    train(config, resume=AUTO)


def test_killed_and_resumed_equals_uninterrupted(make_config, uninterrupted):
    # A checkpoint after every step; kills before the first one, after one, and while one is written.
    config = make_config("killed", training=EVERYTHING, run={"checkpoint_minutes": 1e-9})
    for step, where, left in ((1, "writing", None), (7, "after", 7), (14, "writing", 13)):
        killed = get_context("fork").Process(target=trained_until_killed, args=(config, step, where))
        killed.start()
        killed.join(120)
        assert killed.exitcode == -signal.SIGKILL
        last = config.run.directory / "checkpoints" / "last.ckpt"
        assert (content(last)["global_step"] if last.exists() else None) == left
    resumed = train(config, resume=AUTO)
    assert_same(resumed.last_checkpoint, uninterrupted.last_checkpoint)
    assert_same(resumed.best_checkpoint, uninterrupted.best_checkpoint)
    assert history(resumed.directory) == history(uninterrupted.directory)
    assert not list(last.parent.glob(".*"))  # nor is anything half-written left behind


def test_killed_before_its_evaluation_is_evaluated_on_resuming(make_config, monkeypatch, capsys):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("equipot.training.results.evaluate_sets", killed)
        with pytest.raises(KeyboardInterrupt):
            train(make_config(), resume=AUTO)
    resumed = train(make_config(), resume=AUTO)
    assert resumed.stopped == stopping.FINISHED
    assert resumed.metrics["epochs"] == 4
    assert (resumed.directory / "evaluation" / "validation" / "errors.json").is_file()
    weights = resumed.last_checkpoint.read_bytes()
    again = train(make_config(), resume=AUTO)
    assert again.metrics == resumed.metrics
    assert again.last_checkpoint.read_bytes() == weights
    assert "is done. Its report" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="already done 4 of 4 epochs"):
        train(make_config(), resume=resumed.directory)


def test_a_row_that_a_kill_has_cut_off_is_dropped(make_config):
    first = train(make_config(training={"epochs": 2}))
    path = first.directory / "metrics.csv"
    row = path.read_text().splitlines()[-1]
    with path.open("a") as file:
        file.write(row.replace("2,", "1", 1)[:20])  # "1..." would pass for a row of the first epoch
    resumed = train(make_config(training={"epochs": 3}), resume=first.directory)
    assert [row["epoch"] for row in history(resumed.directory)] == ["1", "2", "3"]


def test_another_batch_size_is_taken_between_epochs_only(make_config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        broken = train(make_config())
    other = make_config(training={"batch_size": 4})
    with pytest.raises(TrainingError, match=r"steps of 3 frames; training.batch_size is now 4 frames"):
        train(other, resume=broken.directory)
    train(make_config(training={"epochs": 1}), resume=broken.directory)
    capsys.readouterr()
    train(other, resume=broken.directory)
    assert "Changed since the checkpoint: training.batch_size: 3, now 4" in capsys.readouterr().out


def test_more_epochs_later_equal_all_at_once(make_config, uninterrupted):
    first = train(make_config("parts", training={**EVERYTHING, "epochs": 5}))
    resumed = train(make_config("parts", training=EVERYTHING), resume=first.last_checkpoint)
    assert_same(resumed.last_checkpoint, uninterrupted.last_checkpoint)
    assert history(resumed.directory) == history(uninterrupted.directory)


def test_comparison_notices_a_different_training(make_config, uninterrupted):
    other = train(make_config("other", training=EVERYTHING, run={"seed": 1}))
    with pytest.raises(AssertionError):
        assert_same(other.last_checkpoint, uninterrupted.last_checkpoint)


def test_time_budget_stops_within_an_epoch_and_validates(make_config, monkeypatch, uninterrupted):
    config = make_config("short", training=EVERYTHING)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "_reason_to_stop", stop_at_step_six)
        short = train(config)
    assert short.stopped == stopping.OUT_OF_TIME
    # the best weights may come from the part of an epoch that was done
    assert [row["epoch"] for row in history(short.directory)] == ["1", "1.5"]
    assert content(short.last_checkpoint)["global_step"] == 6
    resumed = train(config, resume=short.directory)
    assert_same(resumed.last_checkpoint, uninterrupted.last_checkpoint)
    assert history(resumed.directory) == history(uninterrupted.directory)


def stop_at_step_six(self):
    return stopping.OUT_OF_TIME if self.batches.trainer.global_step == 6 else None


def test_nothing_left_to_do(make_config):
    done = train(make_config(training={"epochs": 1}))
    with pytest.raises(TrainingError, match=r"already done 1 of 1 epoch\..*raise training.epochs"):
        train(make_config(training={"epochs": 1}), resume=done.directory)


def test_what_is_refused_leaves_the_training_as_it_was(make_config, monkeypatch):
    done = train(make_config(training={"epochs": 2, "schedule": {"kind": "plateau"}}))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3)
        within = train(make_config("within", training={"epochs": 3}))
    for run, training, words in (
        (done, {"epochs": 1}, "already done 2 of 1 epoch"),
        (within, {"epochs": 3, "batch_size": 9}, r"within an epoch.*training\.batch_size"),
    ):
        before = {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()}
        with pytest.raises(TrainingError, match=words):
            train(make_config("ignored", training=training), resume=run.directory)
        assert {path: path.read_bytes() for path in run.directory.rglob("*") if path.is_file()} == before


def test_nothing_to_resume(make_config, tmp_path):
    with pytest.raises(TrainingError, match="no checkpoint"):
        train(make_config(), resume=tmp_path)


def test_other_model_is_refused(make_config):
    done = train(make_config(training={"epochs": 1}))
    with pytest.raises(TrainingError, match=r"model\.channels: 2, now 3"):
        train(make_config(model={"channels": 3}), resume=done.directory)


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"data": {"train_frames": 5}}, r"data\.train_frames: None, now 5"),
        ({"data": {"seed": 1, "validation": 3}}, r"data\.validation: 4, now 3; data\.seed: 0, now 1"),
        ({"data": {"units": {"energy": "kcal/mol"}}}, r"data\.units\.energy: eV, now kcal/mol"),
        ({"data": {"labels": {"energy": "free_energy"}}}, r"data\.labels\.energy: energy, now free_energy"),
        ({"data": {"atomic_energies": "none"}}, r"data\.atomic_energies: auto, now none"),
        ({"data": {"train": "other.xyz"}}, r"data\.train\[0\]: .*clusters\.xyz, now .*other\.xyz"),
        ({"run": {"seed": 7}}, r"run\.seed: 0, now 7"),
        ({"training": {"optimizer": "adamw"}}, r"training\.optimizer: muon, now adamw"),
        ({"training": {"weight_decay": 0.1}}, r"training\.weight_decay: 0\.0, now 0\.1"),
    ],
)
def test_other_data_or_seed_are_refused(make_config, uninterrupted, sections, named):
    before = (uninterrupted.directory / "config.yaml").read_text()
    with pytest.raises(TrainingError, match=named):
        train(make_config(**{"training": {"epochs": 9}, **sections}), resume=uninterrupted.directory)
    assert (uninterrupted.directory / "config.yaml").read_text() == before


def test_same_file_under_another_name_is_accepted(make_config, structures):
    done = train(make_config(training={"epochs": 1}))
    detour = structures.parent / ".." / structures.parent.name / structures.name
    with pytest.raises(TrainingError, match="already done"):
        train(make_config(data={"train": str(detour)}, training={"epochs": 1}), resume=done.directory)


def test_other_loss_finds_the_best_epoch_anew(make_config, capsys):
    settings = {"epochs": 2, "loss": {"forces": 1e-6, "energy": 1e-6}, "early_stopping": {"patience": 2}}
    settings |= {"schedule": {"kind": "plateau", "patience": 0, "factor": 0.5}}
    done = train(make_config(training=settings))
    settings |= {"epochs": 4, "loss": {"forces": 1e3, "energy": 1e3}}
    resumed = train(make_config("ignored", training=settings), resume=done.directory)
    # against the small losses of before, no epoch would be better and the training would stop early
    assert resumed.stopped == stopping.FINISHED
    assert resumed.metrics["best_epoch"] > 2
    assert [float(row["learning_rate"]) for row in history(resumed.directory)] == [0.02] * 4  # nor a plateau
    said = capsys.readouterr().out
    assert "training.loss has changed" in said
    assert "ignored) is ignored" in said


def test_changed_data_are_refused(make_config, structures, tmp_path):
    copy = tmp_path / "copy.xyz"
    copy.write_text(structures.read_text())
    data = {"train": str(copy)}
    done = train(make_config(data=data, training={"epochs": 1}))
    copy.write_text(structures.read_text().replace("0.1", "0.2"))
    with pytest.raises(DataError, match=r"copy\.xyz changed"):
        train(make_config(data=data), resume=done.directory)


def test_reference_energies_that_have_changed_are_refused(make_config, structures, tmp_path):
    """The digests of the split are those of files with frames to train on; an atom alone is none."""
    atom = ase.Atoms("Cu")

    def write_atom(energy):
        atom.calc = SinglePointCalculator(atom, energy=energy)
        ase.io.write(tmp_path / "atom.xyz", atom)

    write_atom(-1.0)
    data = {"train": [str(structures), str(tmp_path / "atom.xyz")]}
    done = train(make_config(data=data, training={"epochs": 1}))
    write_atom(-2.0)
    with pytest.raises(TrainingError, match=r"statistics\.atomic_energies\[0\]: -1\.0, now -2\.0"):
        train(make_config(data=data, training={"epochs": 2}), resume=done.directory)


def test_statistics_may_differ_by_rounding_only(uninterrupted):
    known = load_checkpoint(uninterrupted.last_checkpoint).statistics

    def check(factor):
        now = dataclasses.replace(known, avg_num_neighbors=factor * known.avg_num_neighbors)
        check_same_statistics(uninterrupted.last_checkpoint, known, now)

    check(1 + 1e-9)
    with pytest.raises(TrainingError, match=r"statistics\.avg_num_neighbors: "):
        check(1 + 1e-4)


def test_weights_that_are_no_numbers_do_not_replace_a_checkpoint(make_config, monkeypatch):
    """On a GPU some steps go by until the loss is looked at; a checkpoint may be due before."""
    first = train(make_config(training={"epochs": 1}))
    kept = first.last_checkpoint.read_bytes()
    monkeypatch.setattr(
        PotentialModule, "training_step", lambda self, *_: self.train_errors.sums.fill_(np.nan)
    )
    often = make_config(training={"epochs": 2}, run={"checkpoint_minutes": 1e-9})
    with pytest.raises(TrainingError, match="The loss is nan in epoch 2, batch 1"):
        train(often, resume=first.directory)
    assert first.last_checkpoint.read_bytes() == kept


def test_memory_that_has_run_out_once_is_not_tried_again(make_config, monkeypatch, caplog):
    def with_little_memory(potential, graph, **options):
        if potential.training and graph.num_edges > 20:  # a frame has 12 edges, a step of three 36
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return predict(potential, graph, **options)

    monkeypatch.setattr("equipot.training.module.predict", with_little_memory)
    first = train(make_config(training={"epochs": 1}))
    assert "Memory ran out" in caplog.text
    caplog.clear()
    train(make_config(training={"epochs": 2}), resume=first.directory)
    assert "Memory ran out" not in caplog.text


def test_lost_best_weights_are_replaced_by_the_best_to_come(make_config, caplog):
    first = train(make_config(training={"epochs": 2, "ema": None}))
    first.best_checkpoint.unlink()
    # at so high a rate no epoch is better than those before
    later = {"epochs": 4, "learning_rate": 10.0, "ema": None}
    resumed = train(make_config(training=later), resume=first.directory)
    assert "best.ckpt is gone" in caplog.text
    assert resumed.best_checkpoint.is_file()
    assert resumed.metrics["best_epoch"] > 2 and "validation" in resumed.metrics
