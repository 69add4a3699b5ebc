"""What TensorBoard and wandb get, read back from what is written."""

import pytest

from equipot.run_directory import RunDirectory
from equipot.training.loggers import log_results, make_loggers
from equipot.training.run import train

METRICS = ("loss", "energy_mae", "energy_rmse", "forces_mae", "forces_rmse")


def test_tensorboard_has_curves_results_plots_and_configuration(make_config, structures):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(
        training={"epochs": 2},
        data={"test": str(structures.with_name("test.xyz"))},
        run={"logging": {"tensorboard": True}},
    )
    result = train(config)
    events = EventAccumulator(str(result.directory / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    curves = {f"{name}/{part}" for name in METRICS for part in ("train", "validation")}
    ends = {f"{name}/{part}" for name in METRICS for part in ("best_validation", "test")} - {"loss/test"}
    assert set(tags["scalars"]) == {"epoch", "time_s", "epoch_s", "learning_rate", *curves, *ends}
    assert set(tags["images"]) == {"learning_curve", "parity/validation", "parity/test"}
    assert b"channels: 2" in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    # 4 steps an epoch; TensorBoard keeps single precision
    assert [event.step for event in events.Scalars("forces_mae/validation")] == [4, 8]
    (test,) = events.Scalars("forces_mae/test")
    assert test.step == 8 and test.value == pytest.approx(result.metrics["test"]["forces_mae"], rel=1e-6)


def test_wandb_gets_curves_and_results(make_config, tmp_path, monkeypatch):
    """A run of wandb starts a service of its own, which takes seconds; what it is told is tested here."""
    config = make_config(run={"logging": {"wandb": {"project": "copper", "mode": "offline"}}})
    directory = RunDirectory(tmp_path / "run")
    (logger,) = make_loggers(config, directory)

    class Experiment:
        summary: dict = {}  # noqa: RUF012
        logged: list = []  # noqa: RUF012

        def log(self, metrics, *_, **__):
            self.logged.append(metrics)

    logger._experiment = Experiment()
    logger.log_metrics({"epoch": 1, "train_forces_mae": 0.1, "validation_forces_mae": 0.2}, step=3)
    (row,) = Experiment.logged
    assert {"epoch": 1, "forces_mae/train": 0.1, "forces_mae/validation": 0.2}.items() <= row.items()
    directory.create()
    directory.learning_curve.touch()
    shown = []
    monkeypatch.setattr(logger, "log_image", lambda name, images, step: shown.append((name, images, step)))
    metrics = {"stopped": "finished", "steps": 7, "validation": {"loss": 1.0}, "test": {"forces_mae": 0.3}}
    log_results([logger], directory, metrics)
    assert Experiment.summary == {"loss/best_validation": 1.0, "forces_mae/test": 0.3}
    assert shown == [("learning_curve", [str(directory.learning_curve)], 7)]
