"""The whole configuration: its sections and what must hold between them."""

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from equipot.config.data import DataConfig
from equipot.config.fine_tune import FineTuneConfig
from equipot.config.model import ModelConfig
from equipot.config.run import RunConfig
from equipot.config.section import Section
from equipot.config.strict_yaml import dump_yaml
from equipot.config.training import TrainingConfig
from equipot.quantities import LABELS


class Config(Section):
    """Everything a training needs; read with ``load_config`` or ``config_from_dict``."""

    data: DataConfig = Field(description="Structures and their reference values.")
    model: ModelConfig | None = Field(
        None,
        description="The architecture, chosen by `type`. Required, except with `fine_tune`, where what is "
        "left out is as in the model to start from.",
    )
    training: TrainingConfig = Field(TrainingConfig(), description="How the model is fitted.")
    run: RunConfig = Field(RunConfig(), description="Where and on what the training runs.")
    fine_tune: FineTuneConfig | None = Field(
        None, description="Start from a trained model; null: from random weights."
    )

    @model_validator(mode="before")
    @classmethod
    def _model_is_required_without_fine_tune(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("model") is None and raw.get("fine_tune") is None:
            return {**raw, "model": {}}  # whose missing `type` is then reported with all other problems
        return raw

    @model_validator(mode="after")
    def _trained_labels_are_read(self):
        for name in LABELS:
            read = any(source.labels.names(name) for source in self.data.sources("train"))
            if self.training.loss.trains(name) and not read:
                raise ValueError(
                    f"`training.loss.{name}` is above 0, but `data.labels.{name}` is null: name the label, "
                    "or set the weight to 0."
                )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults included, as plain dicts, lists, strings and numbers."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Every value, defaults included, as YAML that ``load_config`` reads back to an equal Config."""
        return dump_yaml(self.to_dict())


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML file, for editors that complete and check it."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
