"""SevenNet checkpoints of every kind against a plain evaluation by e3nn, and what is refused."""

import importlib.util

import numpy as np
import pytest
import torch
from plain_sevennet import BASE, evaluate, make

from equipot.data import graph_from_atoms
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.examples import example_structures
from equipot.errors import ConfigError, ModelFileError
from equipot.graph import edge_vectors
from equipot.interop.importer import import_model
from equipot.interop.verify import compare, require_equal

pytestmark = pytest.mark.filterwarnings("ignore:.*")
POLYNOMIAL = {"cutoff_function_name": "poly_cut", "poly_cut_p_value": 6}
MODAL = {
    "_modal_map": {"PBE": 1, "R2SCAN": 0},
    **{f"use_modal_{part}": True for part in ("node_embedding", "self_inter_intro", "output_block")},
    "use_modal_self_inter_outro": True,
}
READOUT = {"readout_as_fcn": True, "readout_fcn_hidden_neurons": [7, 5], "readout_fcn_activation": "silu"}
KINDS = {
    "as SevenNet-0": {"irreps_manual": ["6x0e", *["6x0e+4x1e+3x2e"] * 2, "6x0e"]},
    "old names, solid harmonics": {"version": "0.9.0", "_normalize_sph": False},
    "other signs of 3j": {"flipped": ("1_2_2", "2_1_2", "2_2_1")},
    "levels": {"version": "0.9.4", **MODAL},
    "levels, biases": {
        **MODAL, "use_modal_node_embedding": False, "use_bias_in_linear": True, "use_modal_wise_scale": True,
    },
    "levels, a readout network": {**MODAL, "use_modal_wise_scale": True, **READOUT},
    "O(3), pseudoscalars": {
        "is_parity": True, "lmax": 1, "channel": 3, "layers": 6, "denominators": [1.0] * 6,
    },
    "O(3), by species": {
        "version": "0.11.2", "is_parity": True, "self_connection_type": "nequip", "layers": 4,
        "cutoff_function": POLYNOMIAL,
    },
    "sorted paths, biases": {"version": "0.12.0", "use_bias_in_linear": True, "cutoff_function": POLYNOMIAL},
    "harmonics beyond the features": {"lmax": 2, "lmax_node": 1, "lmax_edge": 2},
    "each layer its own": {
        "irreps_manual": ["5x0e", "6x0e+4x1e+3x2e", "4x0e+5x1e", "8x0e"], "denominators": [4.0, 6.0, 7.5],
    },
    "the harmonics' parities": {
        "is_parity": True, "irreps_manual": ["4x0e", *["4x0e+3x1o"] * 3, "4x0e"], "layers": 4,
    },
}  # fmt: skip


def saved(model, folder):
    torch.save(model.checkpoint(), folder / "sevennet.pth")
    return folder / "sevennet.pth"


@pytest.mark.parametrize("kind", KINDS)
def test_atomic_energies_and_forces(kind, tmp_path):
    model = make(**KINDS[kind])
    path = str(saved(model, tmp_path))
    modals = model.config.get("_modal_map", {})
    found = import_model(path, tmp_path / "a.ckpt", dtype="float64").checkpoint
    read = load_checkpoint(tmp_path / "a.ckpt")
    assert found.potential.species == ["H", "C", "O"] and read.levels == list(modals)
    for level in modals:
        require_same(read.at_level(level).potential, model, modals[level])
        alone = import_model(path, tmp_path / "b.ckpt", level, dtype="float64").checkpoint
        assert alone.levels == [level]
        require_same(alone.potential, model, modals[level])
    if not modals:
        require_same(read.potential, model, None)


def require_same(potential, model, modal):
    of_theirs = torch.tensor([1, 0, 2])  # C, H, O
    for atoms in example_structures(potential.species)[::3]:
        graph = graph_from_atoms(atoms, potential.species, potential.cutoff)
        arguments = edge_vectors(graph), graph.edge_index
        energies, gradient = evaluate(model, *arguments, of_theirs[graph.atom_types], modal)
        ours, forces, _ = potential(
            *arguments, graph.atom_types, torch.ones_like(graph.atom_types, dtype=torch.bool)
        )
        expected = torch.zeros_like(forces).index_add(0, graph.edge_index[0], gradient)
        expected = expected.index_add(0, graph.edge_index[1], -gradient)
        # Sums in another order; the solver of the harmonics and e3nn's constants are double precision.
        torch.testing.assert_close(ours, energies, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(forces, expected, rtol=1e-10, atol=1e-11 * float(1 + forces.abs().max()))
    assert forces.abs().max() > 1e-5


def test_few_elements_and_where_it_is_from(tmp_path):
    model = make(**KINDS["as SevenNet-0"])
    path = saved(model, tmp_path)
    whole = import_model(str(path), tmp_path / "whole.ckpt", dtype="float64").checkpoint
    few = import_model(str(path), tmp_path / "few.ckpt", elements=["O", "H"], dtype="float64").checkpoint
    assert few.potential.species == ["O", "H"] and few.origin == whole.origin
    assert set(few.origin) == {"code", "model", "file", "SHA-256"}
    for found in compare(few.potential, _by(whole.potential), example_structures(["O", "H"])):
        assert found.worst < 1e-13
    read = load_checkpoint(tmp_path / "few.ckpt")
    assert read.imported and read.origin == few.origin


def _by(potential):
    from equipot.models.predict import predict

    def evaluation(atoms):
        found = predict(potential, graph_from_atoms(atoms, potential.species, potential.cutoff))
        return float(found.energy), found.forces.numpy(), found.stress[0].numpy()

    return evaluation


def test_a_difference_is_found(tmp_path):
    model = make(layers=2)
    checkpoint = import_model(str(saved(model, tmp_path)), tmp_path / "a.ckpt", dtype="float64").checkpoint
    original = _by(checkpoint.potential)
    examples = example_structures(["H", "C", "O"])
    require_equal(compare(checkpoint.potential, original, examples), "itself")
    changed = load_checkpoint(tmp_path / "a.ckpt").potential
    with torch.no_grad():
        changed.network.layers[0].convolution.radial.basis.frequencies[0] += 1e-6
    with pytest.raises(ModelFileError, match="differs from that of sevenn"):
        require_equal(compare(changed, original, examples), "sevenn")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"act_radial": "ssp"}, "act_radial: ssp, which equipot does not have"),
        ({"readout_as_fcn": True}, "readout_fcn_activation: relu, which equipot does not have"),
        ({"interaction_type": "mace"}, "interaction_type: mace"),
        ({"self_connection_type": ["nequip", "linear", "linear"]}, "self_connection_type"),
        ({"cuequivariance_config": {"use": True}}, "cuEquivariance"),
        ({"cutoff_function": {"cutoff_function_name": "cosine"}}, "cutoff_function: cosine"),
        ({"irreps_manual": ["4x0e", "4x0e+4x2e", "4x0e", "4x0e"]}, r"irreps 4x0e\+4x2e"),
        ({"irreps_manual": ["4x0e", "4x0e", "4x0e"]}, "irreps"),
        ({"_modal_map": {"PBE": 0, "r2 SCAN": 1}}, "'r2 SCAN' as the name of a level"),
        ({"lmax": 1}, "weights, its irreps need"),
        ({"cutoff": None}, "lacks"),
        ({"radial_basis": "bessel"}, "damaged, or its weights are not those of its configuration"),
        ({"_type_map": {6: 0, 1: 1, 8: 9}}, "not those of its configuration"),
    ],
)
def test_what_cannot_be_expressed_is_named(changes, message, tmp_path):
    content = make().checkpoint()
    content["config"] = {k: v for k, v in {**BASE, **changes}.items() if v is not None}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=message):
        import_model(str(tmp_path / "a.pth"), tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


def test_lacking_irreps_are_named(tmp_path):
    """Those of a layer that equipot's has and that contribute."""
    irreps = ["4x0e", "4x0e+4x1o", "4x0e+4x1o", "4x0e+4x1o+4x1e", "4x0e+4x1o", "4x0e"]
    path = saved(make(is_parity=True, irreps_manual=irreps, layers=5), tmp_path)
    with pytest.raises(
        ModelFileError, match=r"irreps 4x0e\+4x1o, which equipot does not have .*also have 1e"
    ):
        import_model(str(path), tmp_path / "a.ckpt")


def test_what_levels_cannot_have_of_their_own_is_named(tmp_path):
    """But each alone can be imported."""
    content = make(**KINDS["levels, biases"]).checkpoint()
    content["model_state_dict"]["rescale_atomic_energy.scale"][1, 2] *= 1.5
    torch.save(content, tmp_path / "scales.pth")
    by_species = make(**MODAL, self_connection_type="nequip", layers=2)
    torch.save(by_species.checkpoint(), tmp_path / "embedding.pth")
    for name, message in {"scales": "scales by level and element", "embedding": "embedding by level"}.items():
        with pytest.raises(ModelFileError, match=message):
            import_model(str(tmp_path / f"{name}.pth"), tmp_path / "a.ckpt")
        assert not (tmp_path / "a.ckpt").exists()
    alone = import_model(str(tmp_path / "embedding.pth"), tmp_path / "a.ckpt", "R2SCAN", dtype="float64")
    require_same(alone.checkpoint.potential, by_species, 0)


@pytest.mark.parametrize(
    "name, weight, message",
    [
        ("1_convolution.weight_nn.layer1.weight", None, "lacks '1_convolution.weight_nn.layer1.weight'"),
        (
            "1_convolution.weight_nn.layer0.weight",
            torch.zeros(9, 8),
            "not those of its config.*size mismatch",
        ),
        ("1_convolution.weight_nn.layer2.weight", torch.zeros(6, 3), "not those.*hidden layers"),
        ("rescale_atomic_energy.shift", torch.zeros(7), "not those .*7 numbers for 3 elements"),
        (
            "onehot_to_feature_x.linear.weight",
            torch.full([12], torch.nan),
            "not finite in 'onehot_to_feature_x",
        ),
    ],
)
def test_weights_that_do_not_fit(name, weight, message, tmp_path):
    content = make(layers=2).checkpoint()
    content["model_state_dict"] |= {name: weight}
    if weight is None:
        del content["model_state_dict"][name]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ModelFileError, match=message):
        import_model(str(tmp_path / "a.pth"), tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists()


class Evil:
    """Opened by an ordinary unpickler it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_bad_files(tmp_path, monkeypatch):
    path, model = tmp_path / "a.pth", make(layers=2)

    def fails(message, source=str(path), **options):
        with pytest.raises(ModelFileError, match=message):
            import_model(source, tmp_path / "a.ckpt", **options)

    torch.save({**model.checkpoint(), "extra": Evil(str(tmp_path / "ran"))}, path)
    fails("beside tensors and numbers. Such a file can run code")
    assert not (tmp_path / "ran").exists()
    saved(model, tmp_path).rename(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fails("truncated or damaged")
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    fails("damaged")
    torch.save({"model": {"a.b": torch.zeros(1)}, "optimizer": {}}, path)  # as DeePMD's
    fails("no SevenNet checkpoint: expected 'config' and 'model_state_dict', found model, optimizer")
    torch.save(torch.nn.Linear(1, 1), path)  # a pickled model, as MACE's
    fails("holds 'torch.nn.modules.linear.Linear' beside tensors")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), path)
    fails("TorchScript")
    path.write_bytes(whole)
    fails("leave --level out", level="PBE")
    torch.save(make(layers=2, **MODAL).checkpoint(), path)
    fails("it has no level 'pbe'. Its levels are: PBE, R2SCAN.", level="pbe")
    fails("found Si", elements=["Si"])
    with pytest.raises(ModelFileError, match="is the file to import"):
        import_model(str(path), path)
    import_model(str(path), tmp_path / "b.ckpt")
    with pytest.raises(ConfigError, match=r"b\.ckpt exists.*--overwrite"):
        import_model(str(path), tmp_path / "b.ckpt", overwrite=False)
    fails("a checkpoint of equipot already", source=str(tmp_path / "b.ckpt"))
    fails("No file '7net-9'.*Did you mean '7net-0'", source="7net-9")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    fails("not installed: run `pip install sevenn`", source="7net-l3i5")
    assert not (tmp_path / "a.ckpt").exists()


def test_numpy_values_in_a_checkpoint(tmp_path):
    model = make(layers=2)
    content = model.checkpoint()
    content["config"] |= {"shift": np.zeros(3, dtype=np.float32), "best": np.float64(1.0), "n": np.int64(2)}
    torch.save(content, tmp_path / "a.pth")
    assert import_model(str(tmp_path / "a.pth"), tmp_path / "a.ckpt").checkpoint.potential.species == [
        "H",
        "C",
        "O",
    ]
