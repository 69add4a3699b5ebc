"""Section model.outputs, and what it adds to the other sections; units of outputs."""

import subprocess
import sys

import pytest
import torch
from output_models import make_config

from equipot.config import config_from_dict
from equipot.errors import ConfigError
from equipot.quantities import QUANTITIES, declare
from equipot.training.loss import LabelError, Loss
from equipot.units import compound_unit

DIPOLE = {"dipole": {"per": "structure", "tensor": "vector", "unit": "e*Ang"}}
NEQUIP = {"type": "nequip"}


def test_labels_and_weights_follow():
    config = make_config(NEQUIP, DIPOLE)
    assert config.data.labels.names("dipole") == {"dipole": "dipole"}
    assert config.training.loss.final_weight("dipole") == 1.0
    config = make_config(
        NEQUIP,
        DIPOLE,
        data={
            "train": ["a.xyz", {"path": "b.xyz", "labels": {"dipole": "mu"}, "units": {"dipole": "Debye"}}]
        },
        training={"loss": {"dipole": {"start": 1.0, "end": 10.0, "from_epoch": 3}}},
    )
    first, second = config.data.sources("train")
    assert [source.labels.names("dipole")["dipole"] for source in (first, second)] == ["dipole", "mu"]
    assert [source.units.factor("dipole") for source in (first, second)] == [1.0, pytest.approx(0.2081943)]
    assert [config.training.loss.weight_at("dipole", epoch) for epoch in (0, 3)] == [1.0, 10.0]
    assert config_from_dict(config.to_dict()) == config
    assert QUANTITIES["dipole"].shape == (3,) and not QUANTITIES["dipole"].per_atom


def test_weights_that_are_all_zero_name_nothing_that_is_not_there():
    with pytest.raises(ConfigError, match=r"loss: the weights are all 0: nothing to train\.$"):
        make_config(NEQUIP | {"energy": False}, DIPOLE, training={"loss": {"dipole": 0}})


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("model", "outputs", "dipole"), {"per": "atom"}, "outputs.dipole: give either `tensor` or `irreps`"),
        (
            ("model", "outputs", "dipole", "irreps"),
            "1x1o",
            "outputs.dipole: give either `tensor` or `irreps`",
        ),
        (
            ("model", "outputs", "dipole", "tensor"),
            "vektor",
            "outputs.dipole.tensor: .*Did you mean 'vector'",
        ),
        (("model", "outputs", "dipole", "unit"), "Deby", "Unknown factor 'Deby' .* Did you mean 'Debye'"),
        (("model", "outputs", "dipole", "positive"), True, "`positive` goes with `tensor: scalar`"),
        (
            ("model", "outputs", "forces"),
            {"per": "atom", "tensor": "vector"},
            "'forces' cannot name an output",
        ),
        *(
            (("model", "outputs", name), {"per": "atom", "tensor": "scalar"}, f"'{name}' cannot name an outp")
            for name in ("atom_virials", "features", "heat_flux", "energy_std")
        ),
        (("model", "outputs", "dipole"), {"per": "atom", "irreps": "1x0e+0x1o"}, "dipole.irreps: "),
        (("training", "loss", "dipol"), 1.0, "training.loss.dipol: unknown key. Did you mean 'dipole'"),
        (
            ("training", "loss", "charges"),
            1.0,
            r"Valid here: .* dipole\. .*`model\.outputs: \{charges: \{per: atom, .*unit: e\}\}` declares",
        ),
        (
            ("data", "labels", "born_charge"),
            "Z",
            r"`model\.outputs: \{born_charge: \{per: atom, tensor: matrix, .*\}` declares",
        ),
        (
            ("model", "outputs", "dipole", "basis"),
            {"H": [{"l": 0, "exponent": [1.0]}]},
            r"basis\.H\[0\]\.exponent: unknown key\. Did you mean 'exponents'\?",
        ),
        (("training", "loss", "xyz"), 1.0, "loss.xyz: unknown key. Valid here: .*energy, .*stress, dipole"),
        (("data", "labels", "dipol"), "mu", "data.labels.dipol: unknown key. Did you mean 'dipole'"),
        (("data", "units", "dipol"), "Debye", "data.units.dipol: unknown key. Did you mean 'dipole'"),
        (("data", "labels", "dipole"), 3, "data.labels.dipole: expected name that is not empty or null"),
        (
            ("data", "units", "dipole"),
            "Ang",
            r"data.units.dipole is Ang, but the model's dipole is in e\*Ang, which is of",
        ),
        (
            ("data", "test"),
            ["y.xyz", {"path": "z.xyz", "units": {"dipole": "eV"}}],
            r"data\.test\[1\]\.units\.dipole is eV, but",
        ),
        (("training", "loss", "dipole"), -1.0, "training.loss.dipole: expected number"),
    ],
)
def test_wrong_settings(place, value, message):
    raw = {"data": {"train": "x.xyz", "labels": {}, "units": {}}, "training": {"loss": {}}}
    raw["model"] = {"type": "nequip", "outputs": {"dipole": dict(DIPOLE["dipole"])}}
    section = raw
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    with pytest.raises(ConfigError, match=message):
        config_from_dict(raw)


def test_weights_of_outputs_without_any_output():
    with pytest.raises(ConfigError, match=r"training\.loss\.dipole: unknown key"):
        config_from_dict({"data": {"train": "x"}, "model": NEQUIP, "training": {"loss": {"dipole": 1.0}}})


def test_configurations_after_a_model_with_outputs():
    """In a process that has read a deployed file first, the names of its outputs mean the same."""
    code = f"""
from equipot.quantities import declare, output
declare(output("dipole", (3,), "e*Ang", False, rank=1))
from equipot.config import config_from_dict
data = {{"train": "x", "labels": {{"dipole": "mu"}}, "units": {{"dipole": "Debye"}}}}
config = config_from_dict({{"data": data, "model": {{"type": "nequip", "outputs": {DIPOLE!r}}}}})
print(config.data.units.factor("dipole"))"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert float(found.stdout) == pytest.approx(0.208194, rel=1e-5)


def test_two_outputs_of_one_name():
    make_config(NEQUIP, DIPOLE)
    declare(make_config(NEQUIP, DIPOLE).outputs["dipole"].quantity("dipole"))  # the same once more
    other = {"dipole": DIPOLE["dipole"] | {"unit": "Debye"}}
    with pytest.raises(ConfigError, match=r"unit: Debye\) is something else than .* unit: e\*Ang\): rename"):
        make_config(NEQUIP, other)
    charges = {"q": {"per": "atom", "tensor": "scalar", "unit": "e", "sum": "charge"}}
    with pytest.raises(ConfigError, match=r"unit: e\*Ang\), with another charges: .* A fine-tuning repeats"):
        make_config(NEQUIP, charges | {"dipole": DIPOLE["dipole"] | {"charges": "q"}})


@pytest.mark.parametrize(
    ("text", "size", "powers"),
    [
        ("", 1.0, {}),
        ("e*Ang", 1.0, {"charge": 1, "length": 1}),
        ("Debye", 0.2081943, {"charge": 1, "length": 1}),
        ("e²Å²/eV", 1.0, {"charge": 2, "length": 2, "energy": -1}),
        ("e^2*a0^2/Hartree", 0.5291772**2 / 27.211386, {"charge": 2, "length": 2, "energy": -1}),
        ("1/cm", 1e-8, {"length": -1}),
        ("Å⁻¹", 1.0, {"length": -1}),
        ("e² Å² eV⁻¹", 1.0, {"charge": 2, "length": 2, "energy": -1}),
    ],
)
def test_units_that_are_products(text, size, powers):
    found, dimensions = compound_unit(text)
    assert found == pytest.approx(size, rel=1e-6) and dimensions == powers


@pytest.mark.parametrize(
    "text", ["e*Ang^", "e//Ang", "e/", "*e", "Ang^-", "e^2Ang", "Ang^2.5", "e Ang", "e\nAng", "cm^40"]
)
def test_units_that_are_none(text):
    with pytest.raises(ConfigError, match="Unknown factor"):
        compound_unit(text)


def test_weights_of_irreps():
    """The trace of a symmetric tensor by itself, worked out by hand."""
    alpha = {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"}
    config = make_config(NEQUIP, {"alpha": alpha}, training={"irrep_weights": {"alpha": {"0e": 4.0}}})
    loss = Loss(config.training.loss, irrep_weights=config.training.irrep_weights)
    error = torch.tensor([[[3.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    [found] = loss.sums({"alpha": LabelError(error, one)}).values()
    # Of the squares, 9 + 2, the trace has 3²/3 = 3, which count four times.
    torch.testing.assert_close(found, 4 * 3 * one + (11 - 3))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"alpha": {"2o": 1.0}}, "irrep_weights.alpha`: found 2o; expected some of 0e, 2e"),
        ({"beta": {"2e": 1.0}}, "irrep_weights.beta`: found 2e; .* no output of this name"),
        ({"dipole": {"1o": 1.0}}, "irrep_weights.dipole`: found 1o; .* no output of this name with several"),
        ({"alpha": {"2e": -1.0}}, "expected number ≥ 0; found -1.0"),
    ],
)
def test_wrong_weights_of_irreps(weights, message):
    outputs = DIPOLE | {"alpha": {"per": "structure", "tensor": "symmetric", "unit": "Ang^3"}}
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP, outputs, training={"irrep_weights": weights})
