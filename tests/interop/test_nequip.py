"""NequIP's models against a plain evaluation by e3nn, what is refused, and the process for their files."""

import importlib.util
import sys
import zipfile

import numpy as np
import plain_allegro
import pytest
import torch
from plain_nequip import evaluate, make, part
from torch import nn

from equipot.data import graph_from_atoms
from equipot.deploy.checkpoint import load_checkpoint
from equipot.deploy.examples import example_structures
from equipot.errors import ModelFileError
from equipot.graph import edge_vectors
from equipot.interop import importer, nequip_dump, process
from equipot.interop.allegro import AllegroModel
from equipot.interop.dump import Dump
from equipot.interop.importer import import_model, runs_code
from equipot.interop.nequip import NequIPModel

pytestmark = pytest.mark.filterwarnings("ignore:.*")
PAIRS = [[2.9, 3.0, 3.5], [2.6, 2.1, 3.3], [3.5, 3.3, 3.4]]  # O, H, C
KINDS = {
    "default": {},
    "preset": {
        "l_max": 2, "parity": False, "features": [6, 4, 3], "embedding": 3, "radial": [8, 6], "layers": 2,
    },
    "parity to l = 2": {"l_max": 2, "features": [3, 3, 2], "layers": 4},
    "norm by type, readout, Bessel": {"neighbors": [9.0, 3.0, 7.0], "readout": [5, 6], "trainable": True},
    "repulsion, few neighbors": {"zbl": True, "neighbors": [0.5], "layers": 2},
    "cutoffs of pairs": {"pairs": PAIRS, "zbl": True, "layers": 2},
    "first connection": {"first_connection": True, "layers": 2},
}  # fmt: skip
ALLEGRO = {
    "Allegro": {},
    "Allegro, three layers": {"layers": 3, "l_max": 1, "hidden": [6, 5], "two_body": [], "neighbors": 0.5},
    "Allegro, cutoffs of pairs": {"parity": False, "coupled": False, "layers": 1, "pairs": PAIRS},
}


def dumped(model, folder):
    np.savez(folder / "dump.npz", **nequip_dump.dump(model.graph, {"nequip": "0.19.1"}))
    return (folder / "dump.npz").read_bytes()


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """Imports a plain model as if an interpreter had dumped it."""

    def run(model, **options):
        content = dumped(model, tmp_path)
        monkeypatch.setattr(process, "_run", lambda *arguments: content)
        (tmp_path / "model.nequip.zip").write_bytes(b"not opened")
        return import_model(str(tmp_path / "model.nequip.zip"), tmp_path / "a.ckpt", **options).checkpoint

    return run


@pytest.mark.parametrize("kind", [*KINDS, *ALLEGRO])
def test_atomic_energies_and_forces(kind, imported, tmp_path):
    model = plain_allegro.make(**ALLEGRO[kind]) if kind in ALLEGRO else make(**KINDS[kind])
    imported(model, dtype="float64")
    potential = load_checkpoint(tmp_path / "a.ckpt").potential
    assert potential.species == ["H", "C", "O"]
    of_theirs = torch.tensor([1, 2, 0])
    for atoms in example_structures(potential.species)[::3]:
        graph = graph_from_atoms(atoms, potential.species, potential.cutoff)
        arguments = edge_vectors(graph), graph.edge_index
        energies, gradient = evaluate(model, *arguments, of_theirs[graph.atom_types])
        owned = torch.ones_like(graph.atom_types, dtype=torch.bool)
        ours, forces, _ = potential(*arguments, graph.atom_types, owned)
        expected = torch.zeros_like(forces).index_add(0, graph.edge_index[0], gradient)
        expected = expected.index_add(0, graph.edge_index[1], -gradient)
        # Sums in another order.
        torch.testing.assert_close(ours, energies, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(forces, expected, rtol=1e-10, atol=1e-11 * float(1 + forces.abs().max()))
    assert forces.abs().max() > 1e-5


def test_few_elements_and_where_it_is_from(imported):
    model = make(**KINDS["norm by type, readout, Bessel"] | {"pairs": PAIRS, "zbl": True})
    whole = imported(model, dtype="float64")
    few = imported(model, dtype="float64", elements=["O", "H"])
    atoms = example_structures(["O", "H"])[3]
    energies = []
    for checkpoint in (whole, few):
        graph = graph_from_atoms(atoms, checkpoint.potential.species, 3.5)
        energies.append(
            checkpoint.potential.atom_energies(edge_vectors(graph), graph.edge_index, graph.atom_types)
        )
    torch.testing.assert_close(*energies, rtol=1e-13, atol=1e-13)
    assert few.potential.species == ["O", "H"] and few.origin["code"] == "NequIP"
    assert few.origin["package"] == "nequip 0.19.1" and few.origin["licence"] == "not stated in the file"


def replaced(model, name, **members):
    parent, _, child = name.rpartition(".")
    setattr(model.func.get_submodule(parent), child, part(**members))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: setattr(m.func.layer1_convnet, "resnet", True), "ConvNetLayer .* with resnet True"),
        (
            lambda m: setattr(m.func.type_embed, "do_categorical_graph_field_embed", True),
            "do_categorical_graph_field_embed",
        ),
        (lambda m: replaced(m, "total_energy_sum", kind="Dipole"), "Dipole \\(total_energy_sum\\)"),
        (lambda m: m.func.add_module("pair_potential", part("LennardJones")), "LennardJones"),
        (lambda m: replaced(m, "layer0_convnet.equivariant_nonlin", kind="NormActivation"), "NormActivation"),
        (lambda m: m.func.layer0_convnet.conv.edge_mlp.mlp.__setitem__(1, nn.Mish()), "Mish in .*edge_mlp"),
        (lambda m: setattr(m.func.bessel_encode.cutoff, "p", 5.5), "polynomial_cutoff_p 5.5"),
        (lambda m: setattr(m.graph, "type_names", ["O", "H", "water"]), "no elements, water"),
        (lambda m: delattr(m.func.layer1_convnet.conv, "sc"), "layers without self-connections"),
        (lambda m: delattr(m.func, "factor"), "lacks 'factor'"),
    ],
)
def test_what_cannot_be_expressed_is_named(change, message, tmp_path):
    model = make()
    change(model)
    dumped(model, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        NequIPModel(Dump(tmp_path / "a.ckpt", tmp_path / "dump.npz")).model_config()


@pytest.mark.parametrize(
    "changes, message", [({"act": torch.tanh}, "the activation tanh"), ({"radial": []}, "hidden widths")]
)
def test_other_networks_are_named(changes, message, tmp_path):
    dumped(make(**changes), tmp_path)
    with pytest.raises(ModelFileError, match=message):
        NequIPModel(Dump(tmp_path / "a.ckpt", tmp_path / "dump.npz"))


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda m: replaced(m, "radial_chemical_embed", kind="TwoBodySplineScalarEmbed"),
            "uses TwoBodySplineScalarEmbed",
        ),
        (
            lambda m: setattr(m.func.radial_chemical_embed.bessel_encode, "trainable", True),
            "bessel_trainable",
        ),
        (
            lambda m: setattr(m.func.allegro.avg_num_neighbors_norm, "norm_const", torch.ones(3, 1)),
            "avg_num_neighbors of each type",
        ),
    ],
)
def test_what_cannot_be_expressed_of_allegro(change, message, tmp_path):
    model = plain_allegro.make()
    change(model)
    dumped(model, tmp_path)
    with pytest.raises(ModelFileError, match=message):
        AllegroModel(Dump(tmp_path / "a.ckpt", tmp_path / "dump.npz"))


def test_files(tmp_path, monkeypatch):
    """Nothing of a file is run here, and what its interpreter says is passed on."""
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"cnequip.train.lightning\nEvil\n.")

    def fails(message, source=path, **options):
        with pytest.raises(ModelFileError, match=message):
            import_model(str(source), tmp_path / "out.ckpt", **options)
        assert not (tmp_path / "out.ckpt").exists()

    assert runs_code(str(path)) and not runs_code("7net-0")
    with zipfile.ZipFile(tmp_path / "deployed.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"c__torch__.equipot.models.nequip\nNequIP\n.")
    assert not runs_code(str(tmp_path / "deployed.pt"))
    fails("leave --level out", level="PBE")
    fails("--python: .* cannot be run", python=str(tmp_path / "no"))
    fails("nequip .* cannot open it: exit status 1", python="false")
    if importlib.util.find_spec("nequip") is None:
        fails("run `pip install nequip` there", python=sys.executable)
    compiled = tmp_path / "a.nequip.pt2"
    compiled.write_bytes(b"")
    fails("a compiled model of NequIP", compiled)
    old = {"facts": np.array('{"versions": {"nequip": "0.6.2"}, "modules": {}}')}
    np.savez(tmp_path / "old.npz", **old)
    content = (tmp_path / "old.npz").read_bytes()
    monkeypatch.setattr(process, "_run", lambda *arguments: content)
    fails("opened by nequip 0.6.2; expected 0.19")
    assert importer.MODELS  # names of SevenNet's stay
