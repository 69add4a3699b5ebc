"""Densities: outputs with a basis of Gaussian functions, from settings to the cube file."""

import importlib.util
import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.io.cube import read_cube
from ase.units import Bohr, Debye
from e3nn.o3 import Irreps
from output_models import NEQUIP, make_config, rotation
from typer.testing import CliRunner

from equipot.cli import app
from equipot.config import load_config
from equipot.data.dataset import GraphDataset, graph_from_atoms
from equipot.data.readers import read_frames
from equipot.deploy.export import deploy
from equipot.errors import ConfigError, DataError, EquipotError
from equipot.evaluation.density import quadrature
from equipot.evaluation.run import evaluate
from equipot.graph import collate
from equipot.integrations.ase import EquipotCalculator
from equipot.models.build import build_potential
from equipot.models.predict import predict
from equipot.properties.density import density
from equipot.properties.settings import DensitySettings
from equipot.training.loss import Loss, label_errors
from equipot.training.outputs import density_basis, output_statistics
from equipot.training.run import train

BASIS = {
    "H": [{"l": 0, "exponents": [0.5]}, {"l": 1, "exponents": [0.8]}],
    "O": [
        {"l": 0, "exponents": [20.0, 1.0, 0.3], "coefficients": [[0.4, 0.3, 0.1], [0.1, 0.6, 0.4]]},
        {"l": 1, "exponents": [1.0, 0.4]},
        {"l": 2, "exponents": [0.9]},
    ],
}
OUTPUT = {"density": {"per": "atom", "basis": BASIS}}
IRREPS = "2x0e+2x1o+1x2e"
PRESENT = {"H": [0, 2, 3, 4], "O": range(13)}


def water(seed: int):
    """With coefficients that follow from the geometry, and turn with it; nearly ten electrons."""
    atoms = molecule("H2O")
    atoms.rattle(0.05, seed=seed)
    atoms.positions = atoms.positions @ rotation(seed).T
    rows = np.zeros((3, 13))
    bonds = atoms.positions[1:] - atoms.positions[0]
    rows[1:, 0] = 0.2 + 0.1 * np.linalg.norm(bonds, axis=1)
    rows[1:, 2:5] = -0.1 * bonds
    rows[0, :2] = 1.5, 1.3
    rows[0, 2:5] = rows[0, 5:8] = 0.05 * bonds.sum(axis=0)
    atoms.arrays["density"] = rows
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("density")
    ase.io.write(folder / "train.xyz", [water(seed) for seed in range(12)])
    ase.io.write(folder / "test.xyz", [water(seed) for seed in range(20, 23)])
    (folder / "basis.json").write_text(json.dumps(BASIS))
    (folder / "density.yaml").write_text(
        "data: {train: train.xyz, validation: 3}\n"
        "model: {type: nequip, energy: false, cutoff: 4.0, l_max: 2, parity: false, layers: 2, channels: 8,"
        " radial_hidden: [8], outputs: {density: {per: atom, basis: basis.json}}}\n"
        "training: {epochs: 20, batch_size: 3, optimizer: adam, learning_rate: 0.02}\n"
    )
    return folder


@pytest.fixture(scope="module")
def trained(folder, fresh_process):
    config = load_config(folder / "density.yaml", [f"run.directory={folder / 'run'}"])
    run = train(config).directory
    with fresh_process():
        deploy(run / "checkpoints/best.ckpt", folder / "model.pt")
    return folder


def dataset_of(folder, config) -> GraphDataset:
    frames = read_frames(folder / "train.xyz", config.data.labels, config.data.units, required=())
    return GraphDataset(frames, ["H", "O"], 4.0)


def test_irreps_follow_from_the_basis():
    output = make_config(NEQUIP, OUTPUT).outputs["density"]
    assert output.representation == IRREPS and output.shape == (13,)
    assert output.of_elements["H"] == "1x0e+1x1o"


def test_irreps_by_element():
    irreps = {"H": "1x0e", "O": "2x1o+3x0e+1x0o"}
    output = make_config(NEQUIP, {"x": {"per": "atom", "irreps": irreps}}).outputs["x"]
    assert output.representation == "3x0e+1x0o+2x1o"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"basis": {"H": [{"l": 0, "exponents": [1.0], "coefficients": [[1.0, 2.0]]}]}},
            "has 2 coefficients, but",
        ),
        ({"basis": {"H": [{"l": 0, "exponents": [1.0], "coefficients": [[0.0]]}]}}, "function 0 .* are 0"),
        ({"basis": {"H": [{"l": 0, "exponents": [-1.0]}]}}, "exponents"),
        ({"basis": {"Xx": BASIS["H"]}}, "not a chemical symbol"),
        ({"per": "structure"}, "goes with `per: atom`"),
        ({"unit": "e"}, "have no `unit`"),
        ({"tensor": "scalar"}, "either `tensor` or `irreps`, or `indices` or `basis`"),
    ],
)
def test_wrong_settings(change, message):
    with pytest.raises(ConfigError, match=message):
        make_config(NEQUIP, {"density": OUTPUT["density"] | change})


def test_files_of_a_basis(folder, tmp_path):
    config = load_config(folder / "density.yaml")
    assert config.outputs["density"].basis["O"][2].exponents == [0.9]
    (tmp_path / "bad.json").write_text("{")
    for name, message in (
        ("bad.json", "basis: .*is no JSON"),
        ("absent.json", r"No basis file \(model\.outputs\.density\.basis\) .*absent\.json"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_config(folder / "density.yaml", [f"model.outputs.density.basis={tmp_path / name}"])


def test_elements_without_a_basis():
    config = make_config(NEQUIP, OUTPUT)
    with pytest.raises(ConfigError, match="says what H, O have, but not C"):
        build_potential(config.model, ["H", "C", "O"], 6.0, [0.0] * 3, 1.0)


def test_what_an_element_lacks_is_zero_and_the_rest_turns():
    config = make_config(NEQUIP, OUTPUT)
    torch.manual_seed(0)
    potential = build_potential(config.model, ["H", "O"], 2.0, [0.0] * 2, 1.0).eval()
    atoms, matrix = water(3), rotation(5)
    turned = atoms.copy()
    turned.positions = atoms.positions @ matrix.T
    one, other = (
        predict(potential, graph_from_atoms(a, ["H", "O"], 4.0)).outputs["density"].numpy()
        for a in (atoms, turned)
    )
    for symbol, row in zip(atoms.symbols, one, strict=True):
        absent = np.setdiff1d(np.arange(13), PRESENT[symbol])
        assert (row[absent] == 0).all() and (np.abs(row[list(PRESENT[symbol])]) > 1e-6).all()
    expected = one @ Irreps(IRREPS).D_from_matrix(torch.from_numpy(matrix)).numpy().T
    np.testing.assert_allclose(other, expected, atol=1e-5 * np.abs(one).max())


def test_sizes_and_loss_are_integrals_of_squares(folder):
    """Against the square of the difference of densities on a grid; predictions are means of the elements."""
    config = make_config(NEQUIP, OUTPUT)
    data = dataset_of(folder, config)
    statistics = output_statistics(data, config.outputs)
    potential = build_potential(config.model, ["H", "O"], 2.0, [0.0] * 2, 1.0, outputs=statistics)
    factors = potential.outputs.of_elements
    assert (factors[0] > 0).nonzero()[:, 0].tolist() == [0, 2, 4, 6]  # in the order of features
    torch.nn.init.zeros_(potential.outputs.of_elements)
    graph = collate([data[i] for i in range(4)])
    prediction = predict(potential.eval(), graph)
    errors = label_errors(prediction, graph)
    loss = Loss(config.training.loss, {}, ["H", "O"]).sums(errors)["density"]
    basis, total = density_basis("density", ["H", "O"]), 0.0
    for i in range(4):
        atoms = graph.structure == i
        where = graph.positions[atoms] / Bohr, graph.atom_types[atoms]
        points, weights = quadrature(where[0].numpy(), np.array([8, 1, 1]))
        difference = basis.density(torch.from_numpy(points), errors["density"].error[atoms], *where)
        total += float(difference.square() @ torch.from_numpy(weights))
    assert float(loss) == pytest.approx(total, rel=1e-3)
    whole = collate([data[i] for i in range(len(data))])
    errors = label_errors(predict(potential.eval(), whole), whole)
    spread = statistics["density"]["spread"]
    in_its_units = Loss(config.training.loss, {"density": spread}, ["H", "O"]).sums(errors)["density"]
    assert float(in_its_units / errors["density"].count) == pytest.approx(1)  # what a loss begins at


def test_gradient_of_the_loss(folder):
    config = make_config(NEQUIP, OUTPUT)
    graph = dataset_of(folder, config)[0]
    loss = Loss(config.training.loss, {}, ["H", "O"])
    prediction = predict(build_potential(config.model, ["H", "O"], 2.0, [0.0] * 2, 1.0).eval(), graph)
    rows = prediction.outputs["density"].detach().requires_grad_(True)

    def value(rows: torch.Tensor) -> torch.Tensor:
        prediction.outputs["density"] = rows
        return loss.sums(label_errors(prediction, graph))["density"]

    gradient = torch.autograd.grad(value(rows), rows)[0]
    direction, step = torch.randn_like(rows), 1e-3
    numeric = (value(rows.detach() + step * direction) - value(rows.detach() - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(float(numeric), rel=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.set_cell([9, 9, 9]) or atoms.set_pbc(True), "periodic"),
        (lambda atoms: atoms.arrays["density"].__setitem__((1, 12), 0.5), "a label is 0.5 where"),
        (lambda atoms: atoms.arrays.update(density=atoms.arrays["density"][:, :9]), "must have shape"),
    ],
)
def test_labels_that_cannot_be_used(folder, tmp_path, change, message):
    frames = [water(seed) for seed in range(4)]
    for atoms in frames:
        change(atoms)
    ase.io.write(tmp_path / "train.xyz", frames)
    overrides = [
        f"data.train={tmp_path / 'train.xyz'}",
        "data.validation=1",
        f"run.directory={tmp_path / 'run'}",
    ]
    with pytest.raises(EquipotError, match=message):
        train(load_config(folder / "density.yaml", overrides))


def test_grid_of_an_integral():
    positions = np.array([[0.0, 0.0, 0.0], [1.8, 0.3, 0.0], [-0.5, 1.7, 0.2]])
    points, weights = quadrature(positions, np.array([8, 1, 1]))
    for center, exponent in ((positions[0], 60.0), (positions[1], 1.0), (positions.mean(axis=0), 0.4)):
        values = np.exp(-exponent * ((points - center) ** 2).sum(axis=1))
        assert values @ weights == pytest.approx((np.pi / exponent) ** 1.5, rel=2e-3)


def test_errors_of_densities(trained):
    """Where every label gets the same function more, the measure is its integral by hand."""
    found = evaluate(trained / "run", [trained / "test.xyz"], output=trained / "errors").comparison
    errors = json.loads((trained / "errors" / "densities.json").read_text())["density"]
    assert len(errors["error"]) == 3 and max(errors["error"]) < 0.1
    frames = [water(seed) for seed in range(20, 23)]
    for i, atoms in enumerate(frames):
        atoms.arrays["density"] = found.values["density"][found.atoms_of(i)].copy()
        atoms.arrays["density"][1, 0] -= 0.3
    ase.io.write(trained / "moved.xyz", frames)
    evaluate(trained / "run", [trained / "moved.xyz"], output=trained / "errors")
    errors = json.loads((trained / "errors" / "densities.json").read_text())["density"]
    integral = 0.3 * (2 * np.pi / 0.5) ** 0.75
    np.testing.assert_allclose(errors["electrons"], integral, rtol=1e-4)
    reference = basis_charge(frames[0])
    assert errors["error"][0] == pytest.approx(integral / reference, rel=2e-3)
    arm = np.linalg.norm(frames[0].positions[1])
    assert errors["dipole"][0] == pytest.approx(integral * arm, rel=1e-3)


def basis_charge(atoms) -> float:
    basis = density_basis("density", ["H", "O"])
    rows = torch.from_numpy(atoms.arrays["density"])
    types = torch.tensor([["H", "O"].index(symbol) for symbol in atoms.symbols])
    return float(basis.moments(rows, torch.from_numpy(atoms.positions / Bohr), types)[0].sum())


def test_density_of_a_structure(trained, tmp_path):
    arguments = [
        str(trained / "test.xyz@0"),
        "--model",
        str(trained / "model.pt"),
        "--output",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(app, ["density", *arguments, "--spacing", "0.2", "--margin", "4"])
    assert result.exit_code == 0, result.output
    numbers = json.loads((tmp_path / "out" / "density.json").read_text())
    with (tmp_path / "out" / "density.cube").open() as file:
        cube = read_cube(file)
    values, atoms = cube["data"], water(20)
    np.testing.assert_allclose(cube["atoms"].positions, atoms.positions, atol=1e-5)
    volume = (0.2 / Bohr) ** 3
    assert values.sum() * volume == pytest.approx(10, rel=0.02) and numbers["electrons"] == 10
    axes = [cube["origin"][k] + 0.2 * np.arange(values.shape[k]) for k in range(3)]
    electrons = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    center = atoms.get_center_of_mass()
    from_grid = atoms.numbers @ (atoms.positions - center) - values.ravel() @ (electrons - center) * volume
    np.testing.assert_allclose(numbers["dipole_e_Ang"], from_grid, atol=0.03)
    assert numbers["dipole_Debye"] == pytest.approx(np.linalg.norm(numbers["dipole_e_Ang"]) / Debye)
    assert (tmp_path / "out" / "density.png").stat().st_size > 10_000


def test_the_engine_gives_the_same(trained):
    atoms = water(5)
    one, other = (EquipotCalculator(trained / "model.pt", engine=engine) for engine in ("auto", "torch"))
    if one.model.engine is None:
        pytest.skip("the engine is switched off")
    expected = other.get_property("density", atoms)
    np.testing.assert_allclose(one.get_property("density", atoms), expected, atol=1e-6)


def test_densities_that_cannot_be_made(trained):
    atoms = water(1)
    atoms.pbc, atoms.cell = True, [9, 9, 9]
    with pytest.raises(DataError, match="periodic"):
        density(atoms, trained / "model.pt")
    with pytest.raises(ConfigError, match="Raise --spacing"):
        density(water(1), trained / "model.pt", DensitySettings(spacing=1e-3))
    with pytest.raises(ConfigError, match="--name x: the model has no such"):
        density(water(1), trained / "model.pt", DensitySettings(name="x"))
    for charge in (10, 12.5):
        with pytest.raises(ConfigError, match="nuclei have 10 e, so there is no electron"):
            density(water(1), trained / "model.pt", DensitySettings(charge=charge))


def test_fits_of_pyscf_turn_with_the_molecule():
    """The data set's: order, signs and norms of coefficients are e3nn's; electrons and dipole."""
    pytest.importorskip("pyscf", reason="pyscf is not installed")
    path = Path(__file__).parents[2] / "scripts" / "datasets" / "density.py"
    spec = importlib.util.spec_from_file_location("density_data", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fit, atoms, matrix = script.Fit(script.make_basis()), water(2), rotation(7)
    turned = atoms.copy()
    turned.positions = atoms.positions @ matrix.T
    one, other = (script.label(a, fit) for a in (atoms, turned))
    expected = one.arrays["density"] @ Irreps(fit.irreps).D_from_matrix(torch.from_numpy(matrix)).numpy().T
    np.testing.assert_allclose(other.arrays["density"], expected, atol=2e-3)  # PySCF's grid does not turn
    where = torch.from_numpy(atoms.positions / Bohr), torch.tensor([1, 0, 0])
    charges, moment = fit.ours.moments(torch.from_numpy(one.arrays["density"]), *where)
    assert float(charges.sum()) == pytest.approx(10)
    dipole = atoms.numbers @ atoms.positions - moment.numpy() * Bohr
    np.testing.assert_allclose(dipole, one.info["dipole"], atol=0.01)
    assert one.info["fit_error"] < 0.013
