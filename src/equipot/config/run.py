"""Section ``run``: where results go, on which machine, and who is told."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from equipot.config.section import PathField, Section


class WandbConfig(Section):
    """Weights & Biases."""

    project: str = Field("equipot", min_length=1, description="Project name.")
    name: str | None = Field(None, description="Name of the run; null: name of the run directory.")
    mode: Literal["online", "offline"] = Field(
        "online", description="`offline`: write into the run directory, to upload later."
    )


class LoggingConfig(Section):
    """Loggers beside the CSV file, which is always written."""

    wandb: WandbConfig | None = Field(None, description="Log to Weights & Biases; null: do not.")
    tensorboard: bool = Field(False, description="Write TensorBoard files into the run directory.")


class RunConfig(Section):
    """Where and on what the training runs."""

    directory: PathField = Field(
        Path("runs/train"),
        json_schema_extra={"default": "runs/NAME"},
        description="Folder for everything a training writes. Relative names start at the working directory. "
        "NAME is that of the YAML file without its ending.",
    )
    seed: int = Field(0, ge=0, description="Seed of the initial weights and the order of the batches.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device; `auto`: a GPU if there is one."
    )
    devices: int = Field(
        1, ge=1, description="Devices per node. Leave it out under torchrun or srun, which decide."
    )
    nodes: int = Field(1, ge=1, description="Nodes; the same.")
    strategy: str = Field("auto", min_length=1, description="Parallel strategy of Lightning.")
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="CPU threads of PyTorch; null: its default."
    )
    matmul_precision: Literal["highest", "high"] = Field(
        "highest",
        description="Of the products of float32 matrices in training: `highest`: float32; `high`: TF32 where "
        "a GPU has it, whose factors have three digits less: what that does to errors is on the page on "
        "[performance](performance.md).",
    )
    workers: int = Field(
        0,
        ge=0,
        description="Processes per device that read graphs ahead of their use; 0: none. Worth it for data on "
        "disk and fast GPUs.",
    )
    checkpoint_minutes: Annotated[float, Field(gt=0)] | None = Field(
        10.0,
        description="Minutes after which a checkpoint is written within an epoch; null: only at its end.",
    )
    logging: LoggingConfig = Field(LoggingConfig(), description="Loggers beside the CSV file.")
