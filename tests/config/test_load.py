"""Reading a YAML file and overrides: what is accepted, where paths point, what round-trips."""

from pathlib import Path

import pytest

from equipot.config import (
    AllegroConfig,
    LabelsConfig,
    NequIPConfig,
    Source,
    UnitsConfig,
    config_from_dict,
    load_config,
)
from equipot.errors import ConfigError

MINIMAL = """
    data: {train: train.xyz}
    model: {type: nequip}
"""


def test_minimal_file_has_all_defaults(load):
    config = load(MINIMAL)
    assert isinstance(config.model, NequIPConfig)
    assert (config.model.cutoff, config.model.layers, config.model.channels_per_l) == (5.0, 4, (32, 32, 32))
    assert config.data.validation == 0.1 and config.data.test is None
    assert config.training.schedule.kind == "cosine" and config.training.ema == 0.99


def test_the_optimizer_says_which_learning_rate_is_the_default(load):
    def chosen(more):
        training = load(MINIMAL + more).training
        return training.optimizer, training.learning_rate

    assert chosen("") == ("muon", 0.02)
    assert chosen("    training: {optimizer: adamw}") == ("adamw", 0.01)
    assert chosen("    training: {learning_rate: 0.005}") == ("muon", 0.005)
    # Large steps would leave nothing of what the model has learned.
    fine_tuned = "    fine_tune: {model: old.pt}\n"
    assert chosen(fine_tuned) == ("adam", 0.001)
    assert chosen(fine_tuned + "    training: {optimizer: muon}") == ("muon", 0.001)
    # What is added to a frozen potential is random.
    assert chosen("    fine_tune: {model: old.pt, freeze: [potential]}\n") == ("adam", 0.01)
    assert chosen(fine_tuned + "    training: {learning_rate: 0.003}") == ("adam", 0.003)


def test_type_chooses_the_model_section(load):
    config = load("data: {train: a.xyz}\nmodel: {type: allegro, scalar_channels: 16}\n")
    assert isinstance(config.model, AllegroConfig)
    assert config.model.scalar_channels == 16


def test_data_paths_start_at_the_folder_of_the_file(load, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(
        """
        data:
          train: [sub/*.xyz, ../b.xyz, /data/c.xyz]
          validation: v.xyz
          test: ~/t.xyz
        model: {type: nequip}
        """
    )
    assert config.data.train == (tmp_path / "sub/*.xyz", tmp_path.parent / "b.xyz", Path("/data/c.xyz"))
    assert config.data.validation == (tmp_path / "v.xyz",)
    assert config.data.test == (Path.home() / "t.xyz",)


def test_entries_of_data_take_what_they_leave_out_from_the_section(load, tmp_path):
    config = load(
        """
        data:
          train: [a.xyz, {path: [b.h5, /c], labels: {forces: null}, units: {energy: Hartree}, weight: 2.0}]
          test: {path: t.npz, format: npz}
          labels: {energy: E, stress: S}
          units: {length: Bohr}
        model: {type: nequip}
        """
    )
    plain, mapped = config.data.sources("train")
    assert plain == Source((tmp_path / "a.xyz",), config.data.labels, config.data.units)
    assert mapped.path == (tmp_path / "b.h5", Path("/c"))
    assert mapped.labels == LabelsConfig(energy="E", forces=None, stress="S")
    assert mapped.units == UnitsConfig(energy="Hartree", length="Bohr")
    assert (mapped.weight, mapped.format) == (2.0, None)
    assert config.data.sources("test")[0].format == "npz"
    assert config.data.sources("validation") == ()  # a fraction
    assert config_from_dict(config.to_dict()) == config


def test_data_paths_in_overrides_start_at_the_working_directory(load, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load(MINIMAL, "data.test=t.xyz")
    assert config.data.test == (tmp_path / "elsewhere/t.xyz",)
    assert config.data.train == (tmp_path / "train.xyz",)


def test_run_directory_is_named_after_the_file(load):
    assert load(MINIMAL).run.directory == Path("runs/ethanol")
    assert load(MINIMAL + "    run: {seed: 3}").run.directory == Path("runs/ethanol")
    assert load(MINIMAL, "run.directory=here").run.directory == Path("here")


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.e-3", "+1.0e-03", ".001"])
def test_numbers_with_exponent_are_numbers(load, written):
    # YAML 1.1, which PyYAML follows, reads 1e-3 as a string.
    assert load(MINIMAL, f"training.learning_rate={written}").training.learning_rate == 1e-3
    assert load(MINIMAL + f"    training: {{learning_rate: {written}}}").training.learning_rate == 1e-3


def test_elements_that_look_like_yaml_booleans(load):
    # In YAML 1.1, No (nobelium) is false; Y and N are booleans to some readers.
    config = load(MINIMAL, "data.species=[H, N, Y, No]", "data.atomic_energies={H: -1, N: 2e0, Y: 0, No: .5}")
    assert config.data.species == ("H", "N", "Y", "No")
    assert config.data.atomic_energies == {"H": -1.0, "N": 2.0, "Y": 0.0, "No": 0.5}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("50", 50),
        ("0.25", 0.25),
        ("/v.xyz", (Path("/v.xyz"),)),
        ("[/a.xyz, /b.xyz]", (Path("/a.xyz"), Path("/b.xyz"))),
    ],
)
def test_validation_by_number_fraction_or_file(load, written, expected):
    found = load(MINIMAL, f"data.validation={written}").data.validation
    assert found == expected and type(found) is type(expected)


def test_overrides_set_values_and_make_sections(load):
    config = load(
        MINIMAL,
        "training.epochs=10",
        "training.early_stopping.patience=3",
        "run.logging.wandb={project: water, mode: offline}",
        "model.channels=[8, 4, 2]",
        "training.ema=null",
    )
    assert config.training.epochs == 10
    assert config.training.early_stopping.patience == 3
    assert (config.run.logging.wandb.project, config.run.logging.wandb.mode) == ("water", "offline")
    assert config.model.channels_per_l == (8, 4, 2)
    assert config.training.ema is None


def test_later_override_wins_over_earlier_and_file(load):
    config = load(MINIMAL + "    training: {epochs: 1}", "training.epochs=2", "training.epochs=3")
    assert config.training.epochs == 3


def test_override_changes_only_one_of_two_sections_joined_by_an_alias(load):
    config = load(
        """
        data: {train: a.xyz}
        model: {type: nequip}
        training:
          schedule: &shared {patience: 7}
          early_stopping: *shared
        """,
        "training.schedule.patience=9",
    )
    assert (config.training.schedule.patience, config.training.early_stopping.patience) == (9, 7)


@pytest.mark.parametrize("model", ["{type: nequip, channels: [8, 4], l_max: 1}", "{type: allegro, scale: 2}"])
def test_resolved_config_reads_back_equal(load, tmp_path, model):
    config = load(
        f"""
        data: {{train: [a.xyz, b.xyz], validation: 7, species: [H, No], labels: {{energy: "1e5"}}}}
        model: {model}
        training: {{early_stopping: {{}}, max_minutes: 2, schedule: {{min_learning_rate: 1e-9}}}}
        """
    )
    assert config_from_dict(config.to_dict()) == config
    resolved = tmp_path / "run" / "config.yaml"
    resolved.parent.mkdir()
    resolved.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(resolved) == config


def test_to_dict_is_plain_data(load):
    def leaves(value):
        if isinstance(value, dict):
            return [leaf for item in value.values() for leaf in leaves(item)]
        return [leaf for item in value for leaf in leaves(item)] if isinstance(value, list) else [value]

    config = load(MINIMAL, "data.test=[a.xyz]", "data.atomic_energies={H: 1}")
    assert {type(leaf) for leaf in leaves(config.to_dict())} <= {str, int, float, bool, type(None)}


def test_config_cannot_be_changed(load):
    config = load(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3


def test_input_dict_is_not_changed():
    given = {"data": {"train": "a.xyz"}, "model": {"type": "nequip"}}
    config_from_dict(given)
    assert given == {"data": {"train": "a.xyz"}, "model": {"type": "nequip"}}


def test_dict_without_data_is_an_error():
    with pytest.raises(ConfigError, match=r"data: missing"):
        config_from_dict({"model": {"type": "nequip"}})


@pytest.mark.parametrize("word", ["nan", ".nan", "NaN", ".NaN"])
def test_missing_is_yaml_or_text(tmp_path, word):
    (tmp_path / "a.yaml").write_text(
        f"data: {{train: [a.xyz, {{path: b.xyz, missing: error}}], missing: {word}}}\n"
        "model: {type: nequip, cutoff: 4.0}\n"
    )
    if word == "NaN":
        with pytest.raises(ConfigError, match="expected error or nan; found 'NaN'"):
            load_config(tmp_path / "a.yaml")
    else:
        sources = load_config(tmp_path / "a.yaml").data.sources("train")
        assert [source.missing for source in sources] == ["nan", "error"]
