"""The whole configuration: its sections and what must hold between them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field, model_validator

from equipot.config.data import SETS, DataConfig, LabelsConfig, UnitsConfig
from equipot.config.fine_tune import FineTuneConfig
from equipot.config.labels import check_kind
from equipot.config.model import ModelConfig
from equipot.config.outputs import OutputConfig
from equipot.config.run import RunConfig
from equipot.config.section import Section, short
from equipot.config.strict_yaml import Place, dump_yaml
from equipot.config.training import DenoiseConfig, LossConfig, TrainingConfig
from equipot.quantities import BASIC, BASIC_KEYS, FIELD


class Config(Section):
    """Everything a training needs; read with ``load_config`` or ``config_from_dict``."""

    data: DataConfig = Field(description="Structures and their reference values.")
    model: Annotated[ModelConfig | None, short("model", ModelConfig | None)] = Field(
        None,
        description="The architecture, chosen by `type`. Required, except with `fine_tune`, where what is "
        "left out is as in the model to start from.",
    )
    training: Annotated[TrainingConfig, short("training", TrainingConfig)] = Field(
        TrainingConfig(), description="How the model is fitted."
    )
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

    @model_validator(mode="before")
    @classmethod
    def _fine_tuning_is_gentle(cls, raw: Any) -> Any:
        """Steps as large as those from random weights would leave nothing of what was learned."""
        training = raw.get("training", {}) if isinstance(raw, Mapping) and raw.get("fine_tune") else None
        if isinstance(training, Mapping):
            slow = {} if "potential" in _frozen(raw) else {"learning_rate": 0.001}  # what is added is random
            return {**raw, "training": {"optimizer": "adam", **slow, **training}}
        return raw

    @model_validator(mode="before")
    @classmethod
    def _outputs_have_labels_and_weights(cls, raw: Any) -> Any:
        return with_outputs(raw) if isinstance(raw, Mapping) else raw

    @model_validator(mode="after")
    def _further_keys_are_outputs(self):
        with_field = self.model is None or self.model.field  # of a model to start from it is not known yet
        units = {name: output.unit for name, output in self.outputs.items()} | {FIELD.name: FIELD.unit}
        for place, section in self.data.places_of_units.items():
            for name, unit in units.items():
                check_kind(name, section.value_of(name), unit, place)
        if not with_field and any(s.labels.value_of(FIELD.name) for s in self.data.all_sources):
            raise ValueError(f"data.labels.{FIELD.name} goes with `model.field: true`.")
        for place, name in further_keys(self.to_dict()):
            if not is_known(place, name, self.outputs):
                where = ".".join(map(str, place))
                raise ValueError(f"unknown key {where}; `model.outputs` has no `{name}`.")
        return self

    @model_validator(mode="after")
    def _weights_are_of_irreps(self):
        for name, weights in self.training.irrep_weights.items():
            known = [] if name not in self.outputs else self.outputs[name].weighted_irreps
            if wrong := [irrep for irrep in weights if irrep not in known]:
                raise ValueError(
                    f"`training.irrep_weights.{name}`: found {', '.join(wrong)}; expected some of "
                    f"{', '.join(known) or 'nothing: there is no output of this name with several irreps'}."
                )
        return self

    @model_validator(mode="after")
    def _noise_has_an_output(self):
        denoise = self.training.denoise
        if denoise is None:
            return self
        output = self.outputs.get(denoise.output)
        facts = output and (output.per, output.tensor, output.size, output.unit)
        if facts != ("atom", "vector", None, "Ang"):
            found = f"has no `{denoise.output}`" if output is None else f"has another `{denoise.output}`"
            raise ValueError(
                f"`training.denoise` needs an output of displacements, but `model.outputs` {found}: write "
                f"`{denoise.output}: {{per: atom, tensor: vector, unit: Ang}}` there."
            )
        if not self.training.loss.trains(denoise.output):
            raise ValueError(
                f"`training.denoise` needs a `training.loss.{denoise.output}` above 0, or leave it out."
            )
        if any(source.labels.value_of(denoise.output) for source in self.data.all_sources):
            raise ValueError(
                f"`data.labels.{denoise.output}` names a label in files, but `training.denoise` makes it: "
                "leave it out."
            )
        return self

    @model_validator(mode="after")
    def _no_energies_without_energy(self):
        if self.model is None or self.model.energy:
            return self
        sources = self.data.all_sources
        given = {
            **{f"training.loss.{name}": self.training.loss.trains(name) for name in BASIC},
            **{f"data.labels.{name}": any(s.labels.value_of(name) for s in sources) for name in BASIC_KEYS},
            "data.atomic_energies": self.data.atomic_energies not in ("auto", "none"),
            "data.level": bool(self.data.levels),
        }
        for key in (key for key, wrong in given.items() if wrong):
            raise ValueError(f"`{key}` is about energies, but `model.energy` is false: leave it out.")
        return self

    @model_validator(mode="after")
    def _trained_labels_are_read(self):
        made = self.training.denoise and self.training.denoise.output
        loss = self.training.loss
        chosen = set(BASIC) - loss.model_fields_set if self.training.auto else set()  # later, by `auto`
        for name in (name for name in loss.labels if name not in (made, *chosen)):
            read = any(source.labels.names(name) for source in self.data.sources("train"))
            if loss.trains(name) and not read:
                raise ValueError(
                    f"`training.loss.{name}` is above 0, but `data.labels.{name}` is null: name the label, "
                    "or set the weight to 0."
                )
        return self

    @property
    def outputs(self) -> dict[str, OutputConfig]:
        """What the model predicts beside energies."""
        return {} if self.model is None else self.model.outputs

    def to_dict(self) -> dict[str, Any]:
        """Every value, defaults included, as plain dicts, lists, strings and numbers."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Every value, defaults included, as YAML that ``load_config`` reads back to an equal Config."""
        return dump_yaml(self.to_dict())


def with_outputs(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A configuration in which every output of the model has a name in files and a weight in the loss.

    Energies, forces and stress have neither in that of a model without, or where fine-tuning freezes them.
    """
    model = raw.get("model")
    if not isinstance(model, Mapping):
        model = vars(model) if isinstance(model, Section) else {}
    outputs = model.get("outputs")
    if not isinstance(outputs, Mapping) or not outputs:
        return raw
    field = {FIELD.name} if model.get("field") is True else set()
    labels = {name: name for name in (*with_totals(outputs), *field)}
    weights = dict.fromkeys(outputs, 1.0)
    if (made := made_by_noise(raw)) in labels:
        labels[made] = None
    if model.get("energy") is False or "potential" in _frozen(raw):
        labels, weights = dict.fromkeys(BASIC_KEYS) | labels, dict.fromkeys(BASIC, 0.0) | weights
    raw = dict(raw)
    for section, key, values in (("data", "labels", labels), ("training", "loss", weights)):
        outer = raw.get(section) or {}
        inner = outer.get(key) or {} if isinstance(outer, Mapping) else None
        if isinstance(inner, Mapping):
            raw[section] = {**outer, key: {**values, **inner}}
    return raw


def made_by_noise(raw: Mapping[str, Any]) -> str | None:
    """Name of the output whose label ``training.denoise`` makes, in a configuration of plain values."""
    training = raw.get("training")
    denoise = training.get("denoise") if isinstance(training, Mapping) else None
    default = DenoiseConfig.model_fields["output"].default
    return denoise.get("output", default) if isinstance(denoise, Mapping) else None


def _frozen(raw: Mapping[str, Any]) -> Any:
    settings = raw.get("fine_tune")
    found = settings.get("freeze") if isinstance(settings, Mapping) else getattr(settings, "freeze", None)
    return found if isinstance(found, list | tuple) else ()


def with_totals(outputs: Mapping[str, Any]) -> dict[str, None]:
    """Names of outputs, and of what they add up to, labels without a prediction."""
    found = (
        one.get("sum") if isinstance(one, Mapping) else getattr(one, "sum", None) for one in outputs.values()
    )
    return dict.fromkeys([*outputs, *(name for name in found if isinstance(name, str))])


def is_known(place: Place, name: str, outputs: Mapping[str, Any]) -> bool:
    """Whether a key that only outputs can have is one of theirs."""
    return name in outputs or ("loss" not in place and name in {FIELD.name, *with_totals(outputs)})


def further_keys(raw: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """Places of keys that only outputs can have, in a configuration of plain values."""
    data, training = raw.get("data"), raw.get("training")
    if isinstance(training, Mapping):
        yield from _beside_fields(training.get("loss"), LossConfig, ("training", "loss"))
    if not isinstance(data, Mapping):
        return
    entries = [(("data",), data)]
    for name in SETS:
        given = data.get(name)
        if isinstance(given, list | tuple):
            entries += [(("data", name, index), entry) for index, entry in enumerate(given)]
        entries.append((("data", name), given))
    for place, entry in entries:
        if isinstance(entry, Mapping):
            yield from _beside_fields(entry.get("labels"), LabelsConfig, (*place, "labels"))
            yield from _beside_fields(entry.get("units"), UnitsConfig, (*place, "units"))


def _beside_fields(raw: Any, section: type[Section], place: Place) -> Iterator[tuple[Place, str]]:
    if isinstance(raw, Mapping):
        yield from (((*place, key), key) for key in raw if key not in section.model_fields)


def json_schema() -> dict[str, Any]:
    """JSON Schema of the YAML file, for editors that complete and check it."""
    schema = Config.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
