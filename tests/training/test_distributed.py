"""Two processes train as one does: the same steps, gradients, metrics and checkpoints, to rounding."""

import csv
import os
import subprocess
import sys

import pytest
import torch

from equipot.config import RunConfig
from equipot.errors import TrainingError
from equipot.models.predict import predict
from equipot.training.devices import Launcher, adopt_launcher, find_launcher
from equipot.training.run import train

# Batches of 3 in 10 frames: the last one leaves a process without a frame.
TRAINING = {
    "epochs": 3,
    "ema": 0.9,
    "gradient_clip": 0.5,
    "loss": {"energy": 2.0, "forces": 1.0},
    "schedule": {"kind": "plateau", "patience": 0},
}
# Sums of the same float64 numbers in another order, carried through a dozen steps.
ROUNDING = 1e-12


def run_processes(config, launcher, tmp_path, *arguments):
    """`equipot train` in processes of its own; its output."""
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "TORCHELASTIC"))}
    environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    command = [*launcher, "-m", "equipot.cli", "train", str(file), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(directory):
    with (directory / "metrics.csv").open() as file:
        return [{k: float(v) for k, v in row.items() if v and k not in ("time_s", "epoch_s")}
                for row in csv.DictReader(file)]  # fmt: skip


def assert_equal_trainings(directory, reference):
    one, other = (
        torch.load(d / "checkpoints" / "last.ckpt", weights_only=True) for d in (directory, reference)
    )
    assert one["global_step"] == other["global_step"]
    for name, weight in other["state_dict"].items():
        torch.testing.assert_close(one["state_dict"][name], weight, rtol=ROUNDING, atol=ROUNDING)
    for name, weight in other["equipot"]["ema"].items():
        torch.testing.assert_close(one["equipot"]["ema"][name], weight, rtol=ROUNDING, atol=ROUNDING)
    # The file keeps eight digits.
    for row, expected in zip(rows(directory), rows(reference), strict=True):
        assert row == pytest.approx(expected, rel=1e-7)


@pytest.fixture(scope="module")
def alone(config_in, tmp_path_factory):
    return train(config_in(tmp_path_factory.mktemp("alone") / "run", training=TRAINING)).directory


def test_two_processes_started_by_us(make_config, alone, tmp_path):
    config = make_config(training=TRAINING, run={"devices": 2})
    output = run_processes(config, [sys.executable], tmp_path)
    assert "2 × cpu" in output
    assert output.count("Best model") == 1  # only the first process speaks
    assert_equal_trainings(config.run.directory, alone)


def test_two_processes_started_by_torchrun_then_resumed_by_one(make_config, alone, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    config = make_config(training={**TRAINING, "epochs": 2})
    run_processes(config, launcher, tmp_path)
    resumed = train(make_config(training=TRAINING), resume=config.run.directory)
    assert_equal_trainings(resumed.directory, alone)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_parts_of_a_step_add_up_to_it(make_config, alone, no_plot, accumulate):
    config = make_config(training={**TRAINING, "accumulate": accumulate})
    assert_equal_trainings(train(config).directory, alone)


def test_when_memory_runs_out_the_step_is_done_in_parts(make_config, alone, no_plot, monkeypatch, caplog):
    def with_little_memory(potential, graph, **options):
        if potential.training and graph.num_edges > 20:  # a frame has 12 edges, a step of three 36
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
        return predict(potential, graph, **options)

    monkeypatch.setattr("equipot.training.module.predict", with_little_memory)
    assert_equal_trainings(train(make_config(training=TRAINING)).directory, alone)
    said = [record.getMessage() for record in caplog.records if "Memory ran out" in record.getMessage()]
    assert said == [said[0]]
    assert "3 frames with 36 edges" in said[0]
    assert "at most 18 edges" in said[0]


def test_when_memory_runs_out_in_validation_it_is_done_in_parts(
    make_config, alone, no_plot, monkeypatch, caplog
):
    def with_little_memory(potential, graph, **options):
        if not potential.training and graph.num_edges > 40:  # four frames have 48
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.")
        return predict(potential, graph, **options)

    monkeypatch.setattr("equipot.training.module.predict", with_little_memory)
    config = make_config(training={**TRAINING, "validation_batch_size": 4})
    assert_equal_trainings(train(config).directory, alone)
    assert "Memory ran out on 4 frames with 48 edges" in caplog.text


def test_a_frame_that_does_not_fit_alone_is_an_error(make_config, no_plot, monkeypatch):
    def without_memory(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("equipot.training.module.predict", without_memory)
    with pytest.raises(TrainingError, match=r"single frame of 4 atoms and 12 edges"):
        train(make_config(training=TRAINING))


def test_budgets_of_edges_train_and_resume(make_config, no_plot):
    training = {**TRAINING, "batch_size": {"max_edges": 30}, "validation_batch_size": {"max_atoms": 9}}
    whole = train(make_config("whole", training=training))
    first = train(make_config("parts", training={**training, "epochs": 1}))
    resumed = train(make_config("parts", training=training), resume=first.directory)
    one, other = (torch.load(r.last_checkpoint, weights_only=True) for r in (resumed, whole))
    assert one["global_step"] == 3 * 5  # two frames of 12 edges at a time
    for name, weight in other["state_dict"].items():
        assert torch.equal(one["state_dict"][name], weight)


def test_processes_agree_on_the_time(tmp_path):
    """Rates that follow the clock of each would let the copies of the model drift apart."""
    script = tmp_path / "agree.py"
    script.write_text(
        """
import torch
from pathlib import Path
from equipot.training.stopping import latest

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
found = [latest(0.25 + 0.5 * rank, 0.125, step, torch.device("cpu")) for step in (10, 13)]
Path(__file__).with_name(f"{rank}.txt").write_text(str(found))
torch.distributed.destroy_process_group()
"""
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script]
    subprocess.run(command, timeout=240, check=True)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["[0.75, 0.125]"] * 2


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "train"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (TORCHRUN, Launcher("torchrun", 4, 2)),
        (SRUN, Launcher("srun", 4, 2)),
        ({**SRUN, "SLURM_STEP_ID": "4294967291"}, None),  # the batch script itself
        ({**SRUN, "SLURM_JOB_NAME": "bash"}, None),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, None),
    ],
)
def test_who_has_started_the_processes(environment, expected):
    assert find_launcher(environment) == expected


def test_uneven_tasks_are_refused():
    with pytest.raises(TrainingError, match="7 tasks on 2 nodes"):
        find_launcher({**SRUN, "SLURM_NTASKS": "7"})


def test_the_launcher_decides_and_contradictions_are_refused():
    launcher = Launcher("torchrun", 4, 2)
    adopted = adopt_launcher(RunConfig(), launcher)
    assert (adopted.devices, adopted.nodes) == (4, 2)
    assert adopt_launcher(RunConfig(devices=4, nodes=2), launcher).devices == 4
    with pytest.raises(TrainingError, match=r"run\.devices is 2, but torchrun has started processes for 4"):
        adopt_launcher(RunConfig(devices=2), launcher)
