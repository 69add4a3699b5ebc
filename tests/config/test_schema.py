"""The JSON Schema for editors and the reference page made from it."""

import json
from pathlib import Path

import pytest
import yaml

from equipot.config import json_schema
from equipot.config.describe import choices, describe, node_at, sections
from equipot.config.reference import EXAMPLE, reference_page

NULL_BY_DEFAULT = [("early_stopping",), ("swa",), ("wandb",), ("denoise",)]
PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_reference_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == reference_page(), (
        "run: python -m equipot.config.reference > docs/configuration.md"
    )


def test_example_of_the_reference_page_is_a_valid_configuration(load):
    config = load(EXAMPLE)
    assert (config.data.validation, config.training.epochs) == (50, 200)


def test_schema_is_json_and_closed():
    schema = json.loads(json.dumps(json_schema()))
    assert schema["required"] == ["data"]
    # The others have the names of outputs, too.
    closed = [s for s in sections(schema) if s.place[-1:] not in (("labels",), ("units",), ("loss",))]
    assert all(
        section.node["additionalProperties"] is False for section in closed
    )  # those have outputs' names


def test_every_key_has_a_description_and_a_default_unless_required():
    root = json_schema()
    for section in sections(root):
        for key, node in section.properties.items():
            # pydantic drops a description that repeats that of the section it refers to.
            assert "description" in node or "$ref" in node, (section.place, key)
            assert "default" in node or key in section.node["required"], (section.place, key)


def test_resolved_config_has_exactly_the_keys_of_the_schema(load):
    config = load("data: {train: a.xyz}\nmodel: {type: nequip}\n").to_dict()
    root = json_schema()
    for section in sections(root):
        if section.model_type not in (None, "nequip") or section.place[-1:] in NULL_BY_DEFAULT:
            continue
        if section.place == ("fine_tune",):
            continue  # null by default
        if section.place and section.place[-1].endswith("batch_size"):
            continue  # a number by default
        if section.place[:2] in [("data", name) for name in ("train", "validation", "test")]:
            continue  # entries keep what was written
        if section.node["title"] in ("WeightSchedule", "OutputConfig"):
            continue  # by default a number; there are none
        values = config
        for part in section.place:
            values = values[part]
        assert set(values) == set(section.properties), section.place


@pytest.mark.parametrize(
    ("place", "model_type", "words"),
    [
        (("training", "epochs"), None, "whole number ≥ 1"),
        (("model", "type"), None, "nequip, allegro or allegro_dense"),
        (("model", "type"), "allegro", "allegro"),
        (("model", "channels", 0), "nequip", "whole number ≥ 1"),
        (("data", "atomic_energies", "H"), None, "number"),
        (("run", "logging", "wandb", "mode"), None, "online or offline"),
    ],
)
def test_schema_in_words(place, model_type, words):
    root = json_schema()
    assert describe(root, node_at(root, place, model_type)) == words


def test_units_offered_are_those_that_can_be_converted():
    from equipot.units import ENERGY_UNITS, LENGTH_UNITS, energy_factor, length_factor

    root = json_schema()
    assert tuple(choices(root, node_at(root, ("data", "units", "energy"), None))) == ENERGY_UNITS
    assert tuple(choices(root, node_at(root, ("data", "units", "length"), None))) == LENGTH_UNITS
    assert all(energy_factor(name) > 0 for name in ENERGY_UNITS)
    assert all(length_factor(name) > 0 for name in LENGTH_UNITS)


def test_shipped_example_is_also_plain_yaml():
    # Other tools read the file with YAML 1.1 rules; the example must mean the same to them.
    assert yaml.safe_load(EXAMPLE)["training"]["learning_rate"] == 0.01
