"""Ensembles: their members are trainings like any other, interrupted and resumed as a whole."""

import os
import signal

import pytest
import torch

from equipot.errors import TrainingError
from equipot.training.ensemble import train_ensemble
from equipot.training.monitor import TrainingMonitor
from equipot.training.run import AUTO, train

SHORT = {"epochs": 2}

pytestmark = pytest.mark.usefixtures("no_plot")


def last(directory, member):
    return directory / f"member_{member}" / "checkpoints" / "last.ckpt"


def assert_same(one, other):
    """Two checkpoints hold the same bits."""
    one, other = (torch.load(path, weights_only=True) for path in (one, other))
    assert one["global_step"] == other["global_step"]
    for weights, others in (
        (one["state_dict"], other["state_dict"]),
        (one["equipot"]["ema"], other["equipot"]["ema"]),
    ):
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[name]) for name, value in weights.items())


@pytest.fixture(scope="module")
def whole(config_in, tmp_path_factory):
    config = config_in(tmp_path_factory.mktemp("whole"), training=SHORT, run={"seed": 5})
    assert train_ensemble(config, 3) == "finished"
    return config.run.directory


def test_members_differ_by_their_seed_alone(whole, make_config):
    alone = train(make_config(training=SHORT, run={"seed": 6}))
    assert_same(alone.last_checkpoint, last(whole, 1))
    splits = {(whole / f"member_{i}" / "split.json").read_text() for i in range(3)}
    assert len(splits) == 1
    weights = [torch.load(last(whole, i), weights_only=True)["state_dict"] for i in range(3)]
    assert not torch.equal(
        weights[0]["potential.network.embedding"], weights[1]["potential.network.embedding"]
    )


@pytest.mark.parametrize("resume", ["folder", "auto"])
def test_interrupted_ensemble_goes_on_exactly(make_config, monkeypatch, whole, resume):
    config = make_config(training=SHORT, run={"seed": 5})
    root = config.run.directory
    original = TrainingMonitor.on_train_batch_end

    def with_signal(self, trainer, *arguments):
        if self.directory.root.name == "member_1" and trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingMonitor, "on_train_batch_end", with_signal)
        assert train_ensemble(config, 3) == "interrupted"
    assert not last(root, 2).exists()
    before = last(root, 0).stat().st_mtime_ns
    assert train_ensemble(config, 3, resume=AUTO if resume == "auto" else root) == "finished"
    assert last(root, 0).stat().st_mtime_ns == before  # left alone
    for member in range(3):
        assert_same(last(root, member), last(whole, member))


def test_occupied_folders_are_refused(make_config, whole):
    occupied = make_config(training=SHORT, run={"directory": str(whole)})
    with pytest.raises(TrainingError, match="member_0' is not empty"):
        train_ensemble(occupied, 3)
    with pytest.raises(TrainingError, match="holds member_2, which is no member of an ensemble of 2"):
        train_ensemble(occupied, 2)
    with pytest.raises(TrainingError, match=r"2 members is not possible: '.*' already holds 3"):
        train_ensemble(occupied, 2, resume=whole)


def test_what_cannot_be_trained_is_refused(make_config, tmp_path):
    with pytest.raises(TrainingError, match="1 member is not possible: it has two"):
        train_ensemble(make_config(), 1)
    with pytest.raises(TrainingError, match="holds no ensemble"):
        train_ensemble(make_config(), 2, resume=tmp_path)
    with pytest.raises(TrainingError, match=r"one by one: equipot train CONFIG run\.directory=.*member_0"):
        train_ensemble(make_config(run={"devices": 2}), 2)


def test_finished_members_of_another_training_are_not_adopted(make_config, whole, capsys):
    settings = {"training": SHORT, "run": {"directory": str(whole), "seed": 5}}
    with pytest.raises(TrainingError, match=r"member_0.*differs.*model\.channels: 2, now 3"):
        train_ensemble(make_config(**settings, model={"channels": 3}), 3, resume=AUTO)
    with pytest.raises(TrainingError, match=r"run\.seed: 5, now 6"):
        train_ensemble(make_config(training=SHORT, run={"seed": 6}), 3, resume=whole)
    settings["training"] = SHORT | {"learning_rate": 0.03}
    assert train_ensemble(make_config(**settings), 3, resume=AUTO) == "finished"
    assert capsys.readouterr().out.count("members to come: training.learning_rate: 0.02, now 0.03") == 3


@pytest.mark.parametrize("resume", [None, AUTO])
def test_ensemble_does_not_move_into_a_training(make_config, whole, resume):
    config = make_config(training=SHORT, run={"directory": str(whole / "member_0"), "seed": 5})
    with pytest.raises(TrainingError, match="holds a single training, not an ensemble"):
        train_ensemble(config, 2, resume=resume)
    assert not list((whole / "member_0").glob("member_*"))
