"""Every mistake in a configuration gives one message with the place, what was expected, what was found."""

import pytest

from equipot.config import UnitsConfig, config_from_dict, load_config
from equipot.errors import ConfigError
from equipot.quantities import declare, output

NEQUIP = {"type": "nequip"}


def problems(**sections) -> list[str]:
    """The problem lines for a configuration that is valid but for the given sections."""
    raw = {"data": {"train": "a.xyz"}, "model": NEQUIP, **sections}
    with pytest.raises(ConfigError) as caught:
        config_from_dict(raw)
    first, *lines = str(caught.value).splitlines()
    assert first == f"configuration: {len(lines)} problem{'s' * (len(lines) > 1)}"
    return [line.strip() for line in lines]


def message(load, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides)
    return str(caught.value)


# --- unknown keys


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {**NEQUIP, "cutof": 4}}, "model.cutof: unknown key. Did you mean 'cutoff'?"),
        ({"model": {**NEQUIP, "Num-Bessel": 4}}, "model.Num-Bessel: unknown key. Did you mean 'num_bessel'?"),
        ({"trainig": {}}, "trainig: unknown key. Did you mean 'training'?"),
        ({"epochs": 3}, "epochs: unknown key. 'epochs' belongs under 'training'."),
        ({"model": {**NEQUIP, "epochs": 3}}, "model.epochs: unknown key. 'epochs' belongs under 'training'."),
        (
            {"training": {"loss": {"stres": 1.0}}},
            "training.loss.stres: unknown key. Did you mean 'stress'?",
        ),
        (
            {"run": {"logging": {"wandb": {"projct": "x"}}}},
            "run.logging.wandb.projct: unknown key. Did you mean 'project'?",
        ),
        (
            {"training": {"lr": 1e-3}},
            "training.lr: unknown key. Did you mean 'learning_rate'?",
        ),
        (
            {"model": {**NEQUIP, "lr": 1e-3}},
            "model.lr: unknown key. Did you mean 'learning_rate' under 'training' or under 'training.swa'?",
        ),
        ({"model": {**NEQUIP, "r_max": 4}}, "model.r_max: unknown key. Did you mean 'cutoff'?"),
        (
            {"model": {**NEQUIP, "pair_channels": 4}},
            "model.pair_channels: unknown key. 'pair_channels' belongs under 'model' with type: "
            "allegro_dense.",
        ),
        (
            {"run": {"patience": 3}},
            "run.patience: unknown key. 'patience' belongs under 'training.schedule' or under "
            "'training.early_stopping'.",
        ),
        ({"model": {**NEQUIP, "layer": 3}}, "model.layer: unknown key. Did you mean 'layers'?"),
        ({1: 2}, "1: unknown key. Valid here: data, model, training, run, fine_tune."),
    ],
)
def test_unknown_key_names_place_and_remedy(sections, expected):
    assert problems(**{str(k): v for k, v in sections.items()}) == [expected]


def test_key_like_no_other_lists_the_valid_ones():
    [line] = problems(training={"loss": {"xyzzy": 1}})
    assert line == (
        "training.loss.xyzzy: unknown key. Valid here: kind, huber_delta, energy, forces, stress. Another "
        "label is that of an output, which `model.outputs: {xyzzy: {per: structure, tensor: scalar}}` "
        "declares."
    )


# --- wrong values


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("training.epochs", "5", "expected whole number ≥ 1; found '5' (text)."),
        ("training.epochs", 0, "expected whole number ≥ 1; found 0."),
        ("training.epochs", True, "expected whole number ≥ 1; found true."),
        ("training.epochs", None, "expected whole number ≥ 1; found null."),
        ("training.learning_rate", -1, "expected number > 0; found -1."),
        ("training.ema", 1, "expected number > 0 and < 1 or null; found 1."),
        ("training.max_minutes", 0, "expected number > 0 or null; found 0."),
        (
            "training.loss.forces",
            -0.5,
            "expected number ≥ 0 or mapping {start, end, from_epoch, to_epoch}; found -0.5.",
        ),
        ("training.loss.huber_delta", 0, "expected number > 0; found 0."),
        (
            "training.schedule.kind",
            "cos",
            "expected plateau, cosine or constant; found 'cos'. Did you mean 'cosine'?",
        ),
        ("training.schedule.factor", 1.0, "expected number > 0 and < 1; found 1.0."),
        ("model.cutoff", 0, "expected number > 0; found 0."),
        ("model.cutoff", float("inf"), "expected number > 0; found inf."),
        ("model.cutoff", float("nan"), "expected number > 0; found nan."),
        ("model.l_max", 5, "expected whole number from 0 to 4; found 5."),
        ("model.parity", "yes", "expected true, false or ignored; found 'yes'."),
        ("model.scale", "rms", "expected force_rms or number > 0; found 'rms'. Did you mean 'force_rms'?"),
        ("model.scale", 0.0, "expected force_rms or number > 0; found 0.0."),
        ("model.radial_hidden", [], "expected list of whole numbers ≥ 1; found []."),
        ("model.radial_hidden", 64, "expected list of whole numbers ≥ 1; found 64."),
        ("data.train", [1], "expected path, mapping with a path or list of these; found [1]."),
        ("data.train", "", "expected path, mapping with a path or list of these; found '' (text)."),
        ("data.test", [], "expected path, mapping with a path, list of these or null; found []."),
        ("data.train_frames", 0, "expected whole number ≥ 1 or null; found 0."),
        ("data.units.length", "Angstrom", "expected Ang, Bohr or nm; found 'Angstrom'. Did you mean 'Ang'?"),
        ("data.units.stress", 3, "expected unit or null; found 3."),
        ("data.missing", "null", "expected error or nan; found 'null'."),
        (
            "data.units.stress",
            "-kB",
            "Unknown stress unit '-kB'; known: GPa, MPa, kbar, bar, Pa, energies by lengths such as "
            "eV/Ang^3. Did you mean '-kbar'?",
        ),
        ("data.labels.energy", "", "expected name that is not empty or null; found '' (text)."),
        ("run.threads", 0, "expected whole number ≥ 1 or null; found 0."),
        ("run.directory", 3, "expected path; found 3."),
    ],
)
def test_wrong_value_tells_expected_and_found(place, value, expected):
    raw = {"data": {"train": "a.xyz"}, "model": dict(NEQUIP)}
    *parents, key = place.split(".")
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
    section[key] = value
    assert problems(**raw) == [f"{place}: {expected}"]


@pytest.mark.parametrize("value", [0, -1, 1.0, 0.0, True, None, {}, []])
def test_validation_out_of_range(value):
    [line] = problems(data={"train": "a.xyz", "validation": value})
    assert line.startswith(
        "data.validation: expected path, mapping with a path, list of these, whole number ≥ 1 or "
        "number > 0 and < 1; found "
    )


def test_wrong_item_of_a_list_is_named_by_its_index():
    assert problems(model={**NEQUIP, "channels": [1, "a", 0]}) == [
        "model.channels[1]: expected whole number ≥ 1; found 'a' (text).",
        "model.channels[2]: expected whole number ≥ 1; found 0.",
    ]


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            {"pth": "a"},
            ["path: missing; expected path or list of paths.", "pth: unknown key. Did you mean 'path'?"],
        ),
        ({"path": "a", "wieght": 2}, ["wieght: unknown key. Did you mean 'weight'?"]),
        ({"path": "a", "weight": 0}, ["weight: expected number > 0; found 0."]),
        ({"path": "a", "labels": {"enery": "E"}}, ["labels.enery: unknown key. Did you mean 'energy'?"]),
        ({"path": []}, ["path: expected path or list of paths; found []."]),
    ],
)
def test_entry_of_data(entry, expected):
    assert problems(data={"train": entry}) == [f"data.train.{line}" for line in expected]
    assert problems(data={"train": ["b", entry]}) == [f"data.train[1].{line}" for line in expected]


def test_elements_are_checked():
    assert problems(data={"train": "a", "species": ["H", "Cc"], "atomic_energies": {"Xx": 1, "O": "a"}}) == [
        "data.atomic_energies.Xx: 'Xx' is not a chemical symbol.",
        "data.atomic_energies.O: expected number; found 'a' (text).",
        "data.species[1]: 'Cc' is not a chemical symbol. Did you mean 'C'?",
    ]


def test_a_section_that_is_none_says_which_keys_it_has():
    [line] = problems(training={"loss": None})
    assert line == (
        "training.loss: expected section with the keys kind, huber_delta, energy, forces, stress; found null."
    )


# --- the model type


def test_wrong_model_type_and_what_else_is_wrong_in_the_section():
    assert problems(model={"type": "neqip", "cutof": 4}) == [
        "model.type: expected nequip, allegro or allegro_dense; found 'neqip'. Did you mean 'nequip'?",
        "model.cutof: unknown key. Did you mean 'cutoff'?",
    ]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, "model.type: missing; expected nequip, allegro or allegro_dense."),
        ({"type": None}, "model.type: expected nequip, allegro or allegro_dense; found null."),
        ({"type": ["nequip"]}, "model.type: expected nequip, allegro or allegro_dense; found ['nequip']."),
        ({"type": "schnet"}, "model.type: expected nequip, allegro or allegro_dense; found 'schnet'."),
        (
            "nequip",
            "model: expected section with type: allegro, type: allegro_dense or "
            "type: nequip or auto; found 'nequip'.",
        ),
    ],
)
def test_missing_or_wrong_model_type(model, expected):
    assert problems(model=model) == [expected]


def test_the_model_may_be_left_out_only_when_fine_tuning():
    raw = {"data": {"train": "a.xyz"}}
    for absent in (raw, {**raw, "model": None}, {**raw, "fine_tune": None}):
        with pytest.raises(
            ConfigError, match=r"model\.type: missing; expected nequip, allegro or allegro_dense"
        ):
            config_from_dict(absent)
    assert config_from_dict({**raw, "fine_tune": {"model": "old.pt"}}).model is None


def test_mistakes_in_fine_tune_are_named():
    assert problems(fine_tune={"mdel": "old.pt"}) == [
        "fine_tune.model: missing; expected path.",
        "fine_tune.mdel: unknown key. Did you mean 'model'?",
    ]
    assert problems(fine_tune={"model": "old.pt", "learning_rate_factors": {"layers": -1}}) == [
        "fine_tune.learning_rate_factors.layers: expected number > 0; found -1."
    ]
    assert problems(data={"train": "a", "level": "two words"}) == [
        "data.level: expected text or null; found 'two words' (text)."
    ]


# --- what must hold between values


@pytest.mark.parametrize(
    ("sections", "place", "words"),
    [
        ({"model": {**NEQUIP, "channels": [8, 8]}}, "model", "lists 2 numbers, but l_max = 2 needs 3"),
        ({"training": {"loss": {"energy": 0, "forces": 0}}}, "training.loss", "are all 0"),
        (
            {"training": {"epochs": 5, "schedule": {"warmup_epochs": 5}}},
            "training",
            "must be less than `epochs`",
        ),
        ({"training": {"learning_rate": 1e-7}}, "training", "must not exceed `learning_rate`"),
        ({"data": {"train": "a", "species": ["H", "O", "H"]}}, "data", "lists H more than once"),
        (
            {"data": {"train": "a", "species": ["H", "O"], "atomic_energies": {"H": -13.6}}},
            "data",
            "no entry for O",
        ),
        (
            {"data": {"train": ["a.xyz", {"path": "b.xyz", "level": "pbe0"}]}},
            "data",
            "a.xyz names none: give it a `level`, or set `data.level`",
        ),
        (
            {"data": {"train": "a", "level": "pbe", "test": {"path": "t.xyz", "level": "pbe0"}}},
            "data",
            "the level 'pbe0' (t.xyz), which no entry of `train` has; its levels are: pbe.",
        ),
        (
            {
                "data": {
                    "train": ["a", {"path": "b", "level": "pbe0"}],
                    "level": "pbe",
                    "atomic_energies": {"H": -13.6},
                }
            },
            "data",
            "numbers for one level of theory, but `train` has pbe, pbe0",
        ),
        (
            {"data": {"train": "a", "labels": {"stress": None}}, "training": {"loss": {"stress": 0.1}}},
            "",
            "`training.loss.stress` is above 0, but `data.labels.stress` is null",
        ),
        (
            {"data": {"train": {"path": "a", "labels": {"energy": None}}}},
            "",
            "`training.loss.energy` is above 0, but `data.labels.energy` is null",
        ),
        (
            {"training": {"loss": {"energy": {"start": 1.0, "end": 2.0, "from_epoch": 5, "to_epoch": 5}}}},
            "training.loss.energy",
            "`to_epoch` (5) must be more than `from_epoch` (5)",
        ),
        (
            {"training": {"loss": {"energy": {"start": 0.0, "end": 2.0, "from_epoch": 5, "to_epoch": 6}}}},
            "training.loss.energy",
            "cannot start or end at 0",
        ),
        (
            {
                "training": {
                    "loss": {
                        "energy": {"start": 0.0, "end": 1.0, "from_epoch": 60},
                        "forces": {"start": 1.0, "end": 0.0, "from_epoch": 50},
                    }
                }
            },
            "training.loss",
            "are all 0 after 50 epochs",
        ),
        (
            {"training": {"epochs": 60, "loss": {"energy": {"start": 0.0, "end": 1.0, "from_epoch": 60}}}},
            "training",
            "the weights of `loss` change until epoch 60, but there are only 60 `epochs`",
        ),
        (
            {"training": {"swa": {"from_epoch": 100}}},
            "training",
            "`swa` begins after epoch 100, but there",
        ),
        (
            {
                "data": {"train": "a", "labels": {"stress": None}},
                "training": {"loss": {"stress": {"start": 0.0, "end": 1.0, "from_epoch": 60}}},
            },
            "",
            "`training.loss.stress` is above 0, but `data.labels.stress` is null",
        ),
    ],
)
def test_contradictions(sections, place, words):
    [line] = problems(**sections)
    assert line.startswith(f"{place}: " if place else "`") and words in line


# --- the file


def test_all_problems_at_once_each_with_its_line(load, tmp_path):
    text = message(
        load,
        """\
        data:
          train: a.xyz
          validation: 2.0
        model:
          type: nequip
          channels:
            - 8
            - x
            - 8
          layer: 3
        training: {epochs: ten}
        """,
        "training.los.energy=3",
    )
    assert text.splitlines() == [
        f"{tmp_path}/ethanol.yaml: 5 problems",
        "  line 3, data.validation: expected path, mapping with a path, list of these, whole number ≥ 1 or "
        "number > 0 and < 1; found 2.0.",
        "  line 8, model.channels[1]: expected whole number ≥ 1; found 'x' (text).",
        "  line 10, model.layer: unknown key. Did you mean 'layers'?",
        "  line 11, training.epochs: expected whole number ≥ 1; found 'ten' (text).",
        "  override 'training.los.energy=3', training.los: unknown key. Did you mean 'loss'?",
    ]


def test_overridden_value_is_blamed_on_the_override(load):
    text = message(load, "data: {train: a}\nmodel: {type: nequip}\n", "model.cutoff=-1")
    assert "override 'model.cutoff=-1', model.cutoff: expected number > 0; found -1." in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epochs", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("training..epochs=3", "expected KEY=VALUE"),
        ("data.train.x=3", "'data.train' is a value, not a section"),
        ("model.channels=[1, 2", "not valid YAML"),
        ("epochs=3", "'epochs' belongs under 'training'"),
        ("training.epoch=3", "Did you mean 'epochs'?"),
    ],
)
def test_bad_override(load, override, words):
    text = message(load, "data: {train: a.xyz}\nmodel: {type: nequip}\n", override)
    assert words in text and override in text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data: {train: a.xyz\nmodel: 3\n", "line 2, column 6: not valid YAML"),
        ("data:\n\ttrain: a.xyz\n", "line 2, column 1: not valid YAML"),
        ("data:\n\ttrain: a.xyz\n", "does not allow tabs"),
        ("data: {train: a}\n---\ndata: {train: b}\n", "line 2"),
        ("data: !!python/object:os.system x\n", "line 1"),
        (
            "data: {train: a}\nmodel:\n  type: nequip\n  type: allegro\n",
            "line 4: key 'model.type' is given twice",
        ),
        (
            "data: {train: a}\nmodel: {}\ndata: {train: b}\n",
            "line 3: key 'data' is given twice (first in line 1)",
        ),
        ("data: &a\n  train: *a\n", "refers to itself"),
        ("? [a, b]\n: 3\n", "line 1"),
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- data\n", "expected sections"),
    ],
)
def test_bad_yaml(load, text, words):
    assert words in message(load, text)


def test_missing_file_suggests_its_neighbor(tmp_path):
    (tmp_path / "molecule.yaml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"No configuration file .*Did you mean 'molecule.yaml'\?"):
        load_config(tmp_path / "molecul.yaml")


def test_folder_and_binary_file_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"\x80\x02\xff\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(tmp_path / "model.pt")


def test_an_empty_unit_of_an_output_is_none():
    declare(output("gap", (), "", False))
    assert UnitsConfig(gap="").factor("gap") == 1.0
