"""Section ``training``: loss, optimizer, schedule, and when to stop."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, Strict, model_validator

from equipot.config.section import OpenSection, Section, with_fields
from equipot.quantities import BASIC, QUANTITIES, Quantity

Weight = Annotated[float, Field(ge=0)]


class WeightSchedule(Section):
    """A weight that changes during training.

    Reported losses, and the choice of the best epoch, use `end` throughout.
    """

    model_config = ConfigDict(json_schema_extra={"words": "mapping {start, end, from_epoch, to_epoch}"})

    start: Weight = Field(description="Weight at first.")
    end: Weight = Field(description="Weight in the end.")
    from_epoch: int = Field(ge=0, description="Epochs after which the weight begins to change.")
    to_epoch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Epochs after which it is `end`, having changed by equal factors; null: at once."
    )

    @model_validator(mode="after")
    def _change_is_possible(self):
        if self.to_epoch is None:
            return self
        if self.to_epoch <= self.from_epoch:
            raise ValueError(
                f"`to_epoch` ({self.to_epoch}) must be more than `from_epoch` ({self.from_epoch}); leave it "
                "out for a change at once."
            )
        if not self.start or not self.end:
            raise ValueError(
                "a weight that changes by the same factor in every step cannot start or end at 0: use a "
                "small number, or leave `to_epoch` out for a change at once."
            )
        return self

    @property
    def settled_epoch(self) -> int:
        """Epochs after which the weight no longer changes."""
        return self.from_epoch if self.to_epoch is None else self.to_epoch


class _LossFunction(OpenSection):
    kind: Literal["mse", "huber"] = Field(
        "mse", description="Function of each error: its square (`mse`), or the Huber function (`huber`)."
    )
    huber_delta: float = Field(
        0.01,
        gt=0,
        description="Error at which the Huber function turns from quadratic to linear, in eV/atom, eV/Å and "
        "eV/Å³.",
    )


def _weight(quantity: Quantity) -> tuple:
    of = f"{quantity.singular} error per atom" if quantity.normalised else f"{quantity.singular} errors"
    meaning = f"Weight of the {of} ({quantity.unit})."
    return Weight | WeightSchedule, Field(quantity.loss_weight, description=meaning)


class LossConfig(with_fields(_LossFunction, {name: _weight(QUANTITIES[name]) for name in BASIC})):
    """Sum over energy, forces and stress of weight × mean of the function `kind` of the errors.

    The mean runs over frames for the energy (per atom) and over components for forces and stress.
    So it does for `model.outputs`, whose weights stand here by their names and are 1 if they do not; their
    errors are divided by the spread (RMS) of the training labels about their fit to the composition.
    A weight is a number, or changes during training: `{start: 1.0, end: 100.0, from_epoch: 150}`.
    The stress is not trained on unless it is given a weight, which models of crystals, and those for
    dynamics at constant pressure, need: 100, say, as its errors in eV/Å³ are small numbers.
    """

    __pydantic_extra__: dict[str, Weight | WeightSchedule]

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of what may have a weight here."""
        return (*BASIC, *(self.model_extra or {}))

    @model_validator(mode="after")
    def _something_to_learn(self):
        for epoch in sorted({0, *(schedule.from_epoch for schedule in self._schedules())}):
            if not any(self.weight_at(label, epoch) for label in self.labels):
                when = f" after {epoch} epochs" if epoch else ""
                raise ValueError(f"the weights are all 0{when}: nothing to train.")
        return self

    def weight_at(self, label: str, epoch: float) -> float:
        """Weight of ``label`` after ``epoch`` epochs, a function of that alone; 0 if it is not here."""
        weight = self.value_of(label, 0.0)
        if not isinstance(weight, WeightSchedule):
            return weight
        if epoch < weight.from_epoch:
            return weight.start
        if epoch >= weight.settled_epoch:
            return weight.end
        done = (epoch - weight.from_epoch) / (weight.settled_epoch - weight.from_epoch)
        return weight.start * (weight.end / weight.start) ** done

    def final_weight(self, label: str) -> float:
        """Weight of ``label`` once no weight changes any more."""
        weight = self.value_of(label, 0.0)
        return weight.end if isinstance(weight, WeightSchedule) else weight

    def trains(self, label: str) -> bool:
        """Whether ``label`` has a weight at any time."""
        return self.weight_at(label, 0.0) > 0 or self.final_weight(label) > 0

    @property
    def of_energies(self) -> bool:
        """Whether energy, forces or stress have a weight at any time."""
        return any(self.trains(label) for label in BASIC)

    @property
    def settled_epoch(self) -> int:
        """Epochs after which no weight changes any more."""
        return max((schedule.settled_epoch for schedule in self._schedules()), default=0)

    def _schedules(self) -> list[WeightSchedule]:
        weights = [self.value_of(label) for label in self.labels]
        return [weight for weight in weights if isinstance(weight, WeightSchedule)]


class ScheduleConfig(Section):
    """Learning rate over time."""

    kind: Literal["plateau", "cosine", "constant"] = Field(
        "cosine",
        description="`cosine`: fall to `min_learning_rate` over all epochs; `plateau`: multiply by `factor` "
        "when the validation loss has not improved for `patience` epochs; `constant`.",
    )
    warmup_epochs: float = Field(0, ge=0, description="Epochs of linear rise at the start, or a part of one.")
    patience: int = Field(
        25, ge=0, description="For `plateau`: epochs without improvement before a reduction."
    )
    factor: float = Field(0.5, gt=0, lt=1, description="For `plateau`: factor of a reduction.")
    min_learning_rate: float = Field(1e-6, ge=0, description="The learning rate never falls below this.")
    in_time: bool = Field(
        False,
        description="Go by the time where `max_minutes` will be up before all epochs are done: the cosine, "
        "the weights of `loss` and `swa` then arrive at their ends with it. The time is that of all starts "
        "together, without interruptions. `auto` sets it.",
    )


class SWAConfig(Section):
    """Stochastic weight averaging: the mean of the weights after all steps of the last epochs.

    From `from_epoch` on it takes the place of the moving average `ema`: it is what is validated and deployed.
    """

    from_epoch: int = Field(ge=0, description="Epochs after which averaging begins.")
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Learning rate from then on, constant; null: that of the schedule."
    )


class EarlyStoppingConfig(Section):
    """Stop when the validation loss no longer falls.

    Epochs count from when `loss` and `swa` have reached their last stage.
    """

    patience: int = Field(50, ge=1, description="Epochs without improvement before training stops.")
    min_delta: float = Field(0.0, ge=0, description="Smallest fall of the validation loss that counts.")


class BatchLimit(Section):
    """As many frames as fit."""

    model_config = ConfigDict(json_schema_extra={"words": "mapping with max_atoms or max_edges"})

    max_atoms: Annotated[int, Field(ge=1)] | None = Field(None, description="Atoms together at most.")
    max_edges: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Edges (pairs of neighbors, counted both ways) together at most."
    )

    @model_validator(mode="after")
    def _one_limit(self):
        if (self.max_atoms is None) == (self.max_edges is None):
            raise ValueError("give either `max_atoms` or `max_edges`.")
        return self


Sigma = Annotated[float, Field(gt=0)]


class DenoiseConfig(Section):
    """Displace the atoms by Gaussian noise and learn the displacement that undoes it.

    Noise is drawn anew in every epoch, but for validation and test sets. Labels of the files belong to the
    positions in the files: where they have a weight in `loss`, too, a step has each frame twice, as it is and
    displaced. See [denoising](denoising.md).
    """

    output: str = Field(
        "displacement",
        description="Output that is trained to give that displacement: in `model.outputs` it is `{per: atom, "
        "tensor: vector, unit: Ang}`; files have no label of it.",
    )
    sigma: Sigma | Annotated[tuple[Sigma, ...], Strict(False), Field(min_length=2, max_length=2)] = Field(
        description="Standard deviation of the noise in each direction, Å; or two, as in `[0.02, 0.5]`, "
        "between which that of a frame is drawn, log-uniformly; its errors in the loss are divided by it."
    )

    @model_validator(mode="after")
    def _range_rises(self):
        low, high = self.range
        if low > high:
            raise ValueError(f"`sigma` must be one number or a rising pair, found [{low}, {high}].")
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Å, the smallest and the largest sigma."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma, self.sigma)


class TrainingConfig(Section):
    """How the model is fitted."""

    auto: bool = Field(
        False,
        description="Choose what is not given here from the data and from `max_minutes` (60 if that is not "
        "given), and say why; `training: auto` is short for `{auto: true}`. See [auto](auto.md).",
    )
    epochs: int = Field(100, ge=1, description="Passes over the training frames.")
    batch_size: Annotated[int, Field(ge=1)] | BatchLimit = Field(
        5,
        description="What one optimizer step takes, all devices together: a number of frames, or as many as "
        "fit into `{max_atoms: ...}` or `{max_edges: ...}`. Any number of devices shares the same step.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts of its share of a step that a device computes one after the other: the step stays "
        "the same, and needs the memory of a part.",
    )
    validation_batch_size: Annotated[int, Field(ge=1)] | BatchLimit | None = Field(
        None, description="The same for validation, on each device; null: `batch_size`."
    )
    optimizer: Literal["adam", "adamw", "amsgrad", "muon"] = Field(
        "muon",
        description="`muon`: matrices by orthogonalized momentum, everything else by `adamw`; `amsgrad`: "
        "Adam whose steps never grow again. With `fine_tune` the default is `adam`, which forgets less.",
    )
    learning_rate: float = Field(
        default_factory=lambda given: 0.02 if given.get("optimizer") == "muon" else 0.01,
        gt=0,
        description="Learning rate before the schedule changes it. The default is 0.02 for `muon`, 0.01 for "
        "the others, 0.001 with `fine_tune` unless it freezes the `potential`.",
        json_schema_extra={"default": 0.02},
    )
    weight_decay: float = Field(
        0.0,
        ge=0,
        description="Weight decay of matrices: for `adamw` and `muon` decoupled from the gradient, for the "
        "others added to it.",
    )
    loss: LossConfig = Field(LossConfig(), description="What is minimized.")
    irrep_weights: dict[str, dict[str, Annotated[float, Field(ge=0)]]] = Field(
        {},
        description="Weights of single irreps of outputs in the loss, as in `{polarizability: {2e: 5.0}}`: "
        "they multiply the squares of that part's errors; 1 for those that are not named.",
    )
    denoise: DenoiseConfig | None = Field(
        None,
        description="Displace the atoms by noise and learn to undo it, beside the labels of the files or "
        "instead of them; null: do not.",
    )
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning rate over time.")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        0.99,
        description="Decay per step of the exponential moving average of the weights, which is what is "
        "validated and deployed; null: the weights themselves.",
    )
    swa: SWAConfig | None = Field(
        None, description="Average the weights of the last epochs, all alike; null: do not."
    )
    gradient_clip: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Largest norm of the gradient of all weights; null: no limit."
    )
    early_stopping: EarlyStoppingConfig | None = Field(
        None, description="Stop when the validation loss no longer falls; null: run all epochs."
    )
    max_minutes: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="Minutes (wall clock) of training after which it stops, within an epoch if need be: it "
        "validates, saves, and can be resumed; null: no limit.",
    )

    @model_validator(mode="after")
    def _schedule_fits(self):
        if self.auto and "epochs" not in self.model_fields_set:
            return self  # they are chosen later
        if self.schedule.warmup_epochs >= self.epochs:
            raise ValueError(
                f"`schedule.warmup_epochs` ({self.schedule.warmup_epochs}) must be less than `epochs` "
                f"({self.epochs})."
            )
        if self.schedule.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"`schedule.min_learning_rate` ({self.schedule.min_learning_rate}) must not exceed "
                f"`learning_rate` ({self.learning_rate})."
            )
        if self.schedule.in_time and self.max_minutes is None:
            raise ValueError("`schedule.in_time` needs `max_minutes`, the time to go by.")
        stages = [("the weights of `loss` change until", self.loss.settled_epoch)]
        if self.swa is not None:
            stages.append(("`swa` begins after", self.swa.from_epoch))
        for what, epoch in stages:
            if epoch >= self.epochs:
                raise ValueError(
                    f"{what} epoch {epoch}, but there are only {self.epochs} `epochs`: make it earlier."
                )
        return self

    @property
    def last_stage_epoch(self) -> int:
        """Epochs after which neither the weights of the loss nor the kind of average change any more."""
        return max(self.loss.settled_epoch, 0 if self.swa is None else self.swa.from_epoch)
