"""Section ``fine_tune``: a trained model to start from, and how much of it may change."""

from typing import Annotated, Literal

from pydantic import Field

from equipot.config.data import LevelName
from equipot.config.section import PathField, Section

PartName = Annotated[str, Field(min_length=1)]


class FineTuneConfig(Section):
    """A training that starts from the weights of an earlier one, with its scale and its statistics.

    Elements and levels of theory are those of the new training data. See [fine-tuning](finetuning.md).
    """

    model: PathField = Field(
        description="What to start from: a run directory (its best weights), a checkpoint, or a file written "
        "by `equipot deploy`. Relative names start at the working directory."
    )
    level: LevelName | None = Field(
        None,
        description="Level of theory of that model from which levels it does not know start; null: its only "
        "one.",
    )
    atomic_energies: Literal["auto", "keep", "refit"] = Field(
        "auto",
        description="Reference energies of the elements that the model knows: `keep` its own; `refit`: as "
        "`data.atomic_energies` says, where least squares fit what the model's prediction leaves; `auto`: "
        "keep them for levels that it knows by name, refit the others. New elements are always fitted.",
    )
    freeze: tuple[PartName, ...] = Field(
        (),
        strict=False,
        description="Parts that stay as they are: `embedding`, `layers` (all), `layers.0` (one), `radial`, "
        "`readout`, `atomic_energies`, `scale`, `outputs`; or `potential`, all that energies depend on: with "
        "it they stay as they are, for all its elements, and are neither read nor trained on.",
    )
    learning_rate_factors: dict[PartName, Annotated[float, Field(gt=0)]] = Field(
        {},
        description="Factors of the learning rate by part, as in `{embedding: 0.1, layers.0: 0.3}`; where "
        "parts overlap, the factors multiply.",
    )
    replay: Annotated[int, Field(ge=1)] | PathField | None = Field(
        None,
        description="What the model must not forget: how many structures to make of its elements, which are "
        "labelled with its own predictions; or a file, such as `equipot import --replay` writes. Its "
        "elements are kept, and the report has its errors before and after. null: nothing.",
    )
    replay_weight: float = Field(
        1.0,
        ge=0,
        description="Weight of the replay frames in the loss. Each epoch has as many of them as training "
        "frames, in turns with these; a fifth is never trained on. 0: they only measure what is forgotten.",
    )
