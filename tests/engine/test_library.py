"""The engine's library: neighbor search, domains that exchange features, and everything that can be wrong."""

import ctypes
import json
import zipfile

import numpy as np
import pytest
import torch
from domains import MOVE, exchange

from equipot.config import AllegroConfig, NequIPConfig
from equipot.data.neighbors import neighbor_list
from equipot.engine.library import Engine, _Description, _Edges, _Results, _Structure, load_library
from equipot.errors import DataError, ModelFileError, SimulationError
from equipot.models.build import build_potential

SPECIES, CUTOFF = ["H", "O"], 3.0
SETTINGS = {"cutoff": CUTOFF, "layers": 3, "channels": 4, "l_max": 1, "radial_hidden": (8,)}


@pytest.fixture(scope="module", params=["float32", "float64"])
def file(request, tmp_path_factory):
    torch.manual_seed(3)
    config = NequIPConfig(type="nequip", dtype=request.param, **SETTINGS)
    potential = build_potential(config, SPECIES, 10.0, [-1.0, -2.0], 1.0).eval()
    path = tmp_path_factory.mktemp("engine") / "model.pt"
    write(path, potential.program().files())
    return path


def write(path, files, version="1"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/format_version", version)
        for name, content in files.items():
            archive.writestr(f"model/{name}", content)


def contents(file):
    with zipfile.ZipFile(file) as archive:
        return {
            name: archive.read(f"model/{name}")
            for name in ("engine/program.json", "engine/weights.safetensors")
        }


def structure(num_atoms=30, seed=0):
    """Atoms that keep their distance, some outside the skew cell."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3), axis=-1).reshape(-1, 3)[:num_atoms] * 1.7
    positions = grid + rng.uniform(-0.3, 0.3, grid.shape)
    cell = np.array([[7.0, 0.0, 0.0], [1.1, 7.0, 0.0], [-0.9, 0.8, 7.0]])
    outside = rng.integers(-2, 3, (num_atoms, 3))
    return positions, cell, outside, rng.integers(0, 2, num_atoms)


@pytest.mark.parametrize(
    "pbc", [(1, 1, 1), (1, 1, 0), (0, 0, 1), (0, 1, 0), (0, 0, 0)], ids=lambda p: "".join(map(str, p))
)
@pytest.mark.parametrize("scale", [1.0, 0.45])  # also cells thinner than the cutoff, with images of one atom
def test_neighbors_are_those_of_matscipy(file, pbc, scale):
    positions, cell, outside, types = structure(30 if scale == 1 else 4)
    positions, cell = positions * max(scale, 0.7), cell * scale
    positions = positions + (outside * pbc) @ cell
    edge_index, shift = neighbor_list(positions, cell, np.array(pbc, dtype=bool), CUTOFF)
    vec = positions[edge_index[1]] - positions[edge_index[0]] + shift @ cell
    engine = Engine(file)
    right = engine.evaluate_edges(vec, edge_index, types, heat=True)
    found = engine.evaluate(positions, cell, pbc, types, heat=True)
    for name in ("atom_energies", "forces", "atom_virials", "atom_heat_virials"):
        np.testing.assert_allclose(getattr(found, name), getattr(right, name), rtol=2e-5, atol=2e-5)
    assert np.abs(right.forces).max() > 1e-3  # there is something to compare


def test_domain_with_ghosts_gives_what_periodic_images_give(file):
    """Ghosts' features are those of the atoms they are images of; their forces go back to the owners."""
    positions, cell, _, types = structure()
    pbc = np.ones(3, dtype=bool)
    edge_index, shift = neighbor_list(positions, cell, pbc, CUTOFF)
    vec = positions[edge_index[1]] - positions[edge_index[0]] + shift @ cell
    right = Engine(file).evaluate_edges(vec, edge_index, types, heat=True)
    # Every image that an edge leads to becomes an atom of its own.
    images, place = np.unique(np.column_stack([edge_index[1], shift]), axis=0, return_inverse=True)
    outside = images[:, 1:].any(axis=1)
    number = np.where(outside, len(types) + np.cumsum(outside) - 1, images[:, 0])
    owner = np.concatenate([np.arange(len(types)), images[outside, 0]])
    neighbor, all_types = number[place.reshape(-1)], types[owner]
    dtype = (
        np.float32 if json.loads(contents(file)["engine/program.json"])["dtype"] == "float32" else np.float64
    )
    calls = []

    def to_ghosts(rows, ghosts):
        ghosts[:] = rows
        calls.append("forth")

    def to_owners(ghosts, rows):
        rows[:] = ghosts
        calls.append("back")

    ghosts = owner[len(types) :]
    link = exchange(len(types), ghosts, len(ghosts), to_ghosts, to_owners)
    energies, forces, heat = (np.empty((len(owner), *shape)) for shape in ((), (3,), (3, 3)))
    owned = (np.arange(len(owner)) < len(types)).astype(np.uint8)
    center, neighbor = (np.ascontiguousarray(a, dtype=np.int64) for a in (edge_index[0], neighbor))
    all_types = np.ascontiguousarray(all_types, dtype=np.int64)
    arrays = [a.ctypes.data for a in (all_types, owned, center, neighbor, vec)]
    engine = Engine(file)
    edges = _Edges(len(owner), len(vec), *arrays, ctypes.addressof(link))
    results = _Results(None, energies.ctypes.data, forces.ctypes.data, None, None, heat.ctypes.data)
    engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(results))
    total, total_heat = forces[: len(types)].copy(), heat[: len(types)].copy()
    np.add.at(total, owner[len(types) :], forces[len(types) :])
    np.add.at(total_heat, owner[len(types) :], heat[len(types) :])
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    np.testing.assert_allclose(energies[: len(types)], right.atom_energies, rtol=tolerance)
    np.testing.assert_allclose(total, right.forces, atol=tolerance)
    np.testing.assert_allclose(total_heat, right.atom_heat_virials, atol=tolerance)
    assert calls == 2 * ["forth"] + 2 * 4 * ["back"] and not energies[len(types) :].any()


@pytest.mark.parametrize(
    "settings",
    [
        NequIPConfig(type="nequip", **SETTINGS),
        AllegroConfig(type="allegro", cutoff=CUTOFF, channels=2, l_max=1, scalar_channels=4),
    ],
    ids=lambda s: s.type,
)
def test_an_exchange_says_which_atoms_are_owned(settings, tmp_path):
    """Without a mask ghosts' energies do not count, whatever the model."""
    potential = build_potential(settings, SPECIES, 10.0, [-1.0, -2.0], 1.0).eval()
    write(tmp_path / "model.pt", potential.program().files())
    engine = Engine(tmp_path / "model.pt")
    # The ghost's row comes from somewhere: nobody else writes it.
    link = exchange(1, [], 1, lambda _, ghosts: ghosts.fill(0), lambda *_: None)
    types, center, neighbor = (np.array(a, dtype=np.int64) for a in ([0, 1], [0, 1], [1, 0]))
    vec, energies = np.array([[1.0, 0, 0], [-1.0, 0, 0]]), np.ones(2)
    edges = _Edges(
        2,
        2,
        types.ctypes.data,
        None,
        *(a.ctypes.data for a in (center, neighbor, vec)),
        ctypes.addressof(link),
    )
    results = _Results(None, energies.ctypes.data, None, None, None)
    engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(results))
    assert energies[0] != 0 and energies[1] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_owned": -1}, "num_owned or num_sent is negative"),
        ({"num_sent": -1}, "num_owned or num_sent is negative"),
        ({"to_ghosts": MOVE()}, "lacks a function"),
        ({"to_owners": MOVE()}, "lacks a function"),
        ({"sent": None}, "the exchange's sent is null"),
        ({"num_owned": 0}, "the exchange sends atom 0, of 0 that are owned"),
        ({"num_owned": 3}, "more atoms are owned than there are"),
    ],
)
def test_bad_exchanges_are_refused(file, changes, message):
    link = exchange(1, [0], 1, lambda *_: None, lambda *_: None)
    for name, value in changes.items():
        setattr(link, name, value)
    types, center, neighbor = (np.array(a, dtype=np.int64) for a in ([0, 1], [0], [1]))
    vec, engine = np.array([[1.0, 0, 0]]), Engine(file)
    arrays = (a.ctypes.data for a in (center, neighbor, vec))
    edges = _Edges(2, 1, types.ctypes.data, None, *arrays, ctypes.addressof(link))
    results = _Results(None, None, np.empty((2, 3)).ctypes.data)
    with pytest.raises(DataError, match="(?i)" + message):
        engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(results))


def test_many_atoms_in_one_place_are_refused_at_once(file):
    """Before all of their 10^10 edges are made."""
    with pytest.raises(DataError, match="are 0 A apart"):
        Engine(file).evaluate(np.zeros((100_000, 3)), np.eye(3), (0, 0, 0), np.zeros(100_000))


def test_says_what_the_model_is(file):
    engine = Engine(file)
    assert (engine.species, engine.cutoff, engine.num_exchanges) == (("H", "O"), CUTOFF, 2)


def test_no_atoms_and_a_lone_atom(file):
    engine = Engine(file)
    empty = engine.evaluate(np.zeros((0, 3)), np.zeros((3, 3)), (0, 0, 0), np.zeros(0))
    assert empty.atom_energies.shape == (0,)
    alone = engine.evaluate(np.zeros((1, 3)), np.zeros((3, 3)), (0, 0, 0), [1])
    assert np.isfinite(alone.atom_energies).all() and not alone.forces.any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"types": [0, 2]}, DataError, "atom 1 has type 2, the model knows types 0 to 1"),
        ({"types": [-1, 0]}, DataError, "atom 0 has type -1"),
        ({"positions": [[0, 0, 0], [0.01, 0, 0]]}, DataError, "0.01 A apart; expected at least 0.1"),
        ({"positions": [[0, 0, 0], [np.nan, 0, 0]]}, DataError, "the position of atom 1 is not finite"),
        ({"positions": [[0, 0, 0]]}, DataError, r"positions must be \(2, 3\)"),
        ({"types": [0, 0.7]}, DataError, "atom_types must be int64, but are float64"),
        ({"types": [[0], [1]]}, DataError, r"atom_types must be \(n,\)"),
        ({"pbc": (1, 1)}, DataError, r"pbc must be \(3,\)"),
        ({"pbc": True}, DataError, r"pbc must be \(3,\)"),
        ({"cell": [5, 5, 5]}, DataError, r"cell must be \(3, 3\)"),
        ({"cell": np.zeros((3, 3))}, DataError, "zero, parallel or not finite"),
        ({"cell": np.array([[5.0, 0, 0], [10.0, 0, 0], [0, 0, 5]])}, DataError, "zero, parallel"),
        ({"cell": np.diag([5, 5, np.inf])}, DataError, "not finite"),
        ({"cell": np.diag([1e-5, 5, 5])}, DataError, "too thin"),
        ({"cell": np.diag([4e-3, 4e-3, 4e-3])}, DataError, "too thin"),  # thousands of millions of images
    ],
)
def test_bad_structures_are_refused(file, change, error, message):
    given = {"positions": [[0, 0, 0], [1, 0, 0]], "cell": np.eye(3) * 5, "pbc": (1, 1, 1), "types": [0, 1]}
    given |= change
    with pytest.raises(error, match=f"(?i){message}"):
        Engine(file).evaluate(given["positions"], given["cell"], given["pbc"], given["types"])


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        ([[0, 1], [1, 7]], "refers to atom 7 of 2"),
        ([[0, -1], [1, 0]], "refers to atom -1"),
        ([[0], [1]], r"edge_vec must be \(1, 3\)"),
        ([[0, 1], [1, 0.9]], "edge_index must be int64, but are float64"),
        ([0, 1], r"edge_index must be \(2, n\)"),
        ([[0, 1]] * 3, r"edge_index must be \(2, n\)"),
    ],
)
def test_bad_edges_are_refused(file, edge_index, message):
    with pytest.raises(DataError, match=message):
        Engine(file).evaluate_edges([[1.0, 0, 0], [-1.0, 0, 0]], edge_index, [0, 1])


@pytest.mark.parametrize(
    ("known", "table"),
    [
        ('{"H-O": 0.95, "H-H": 1.5}', [[1.5, 0.95], [0.95, np.inf]]),
        ("{}", None),
        (None, None),  # deployed before files said so
    ],
)
def test_shortest_distances_of_the_training_set(file, tmp_path, known, table):
    files = contents(file) | ({"extra/shortest_distances": known} if known else {})
    write(tmp_path / "model.pt", files)
    engine, found = Engine(tmp_path / "model.pt"), _Description()
    engine._call("equipot_describe", engine._model, ctypes.byref(found))
    pointer = found.shortest_distances
    assert (np.ctypeslib.as_array(pointer, (2, 2)).tolist() if pointer else None) == table


def test_messages_call_atoms_by_their_ids(file):
    """Those of atoms that are there: numbers of others are what they are."""
    types, center, ids = (np.array(a, dtype=np.int64) for a in ([0, 1], [0, 1], [17, 4]))
    vec, engine = np.array([[0.01, 0, 0], [-0.01, 0, 0]]), Engine(file)

    def evaluate(neighbor):
        addresses = [a.ctypes.data if a is not None else None for a in (types, None, center, neighbor, vec)]
        edges = _Edges(2, 2, *addresses, None, ids.ctypes.data)
        engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(_Results()))

    with pytest.raises(DataError, match=r"Atoms 17 and 4 are 0.01 A apart"):
        evaluate(np.array([1, 0]))
    with pytest.raises(DataError, match=r"Atoms 17 and 9000000000 are"):
        evaluate(np.array([9000000000, 0]))


def test_messages_leave_file_names_as_they_are(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match=r"^model.pt: deployed without an uncertainty"):
        Engine("model.pt").uncertainty(np.ones((1, 1)))


def test_null_pointers_are_refused(file):
    library, model = load_library(), Engine(file)._model
    nothing = ctypes.c_void_p()
    empty = _Results()
    for function, arguments in (
        ("equipot_open", (None, ctypes.byref(ctypes.c_void_p()))),
        ("equipot_open", (str(file).encode(), None)),
        ("equipot_describe", (nothing, None)),
        ("equipot_describe", (model, None)),
        ("equipot_evaluate_edges", (model, None, ctypes.byref(empty))),
        ("equipot_evaluate_edges", (model, ctypes.byref(_Edges(2, 1)), ctypes.byref(empty))),
        ("equipot_evaluate_edges", (model, ctypes.byref(_Edges(-2, 1)), ctypes.byref(empty))),
        ("equipot_evaluate", (model, None, ctypes.byref(empty))),
        ("equipot_check", (nothing, None, ctypes.c_size_t(0))),
    ):
        assert getattr(library, function)(*arguments) == 1, function
        assert library.equipot_message()


def test_results_that_are_not_finite_are_refused(file, tmp_path):
    files = contents(file)
    start = 8 + int.from_bytes(files["engine/weights.safetensors"][:8], "little")
    weights = bytearray(files["engine/weights.safetensors"])
    weights[start:] = b"\xff" * (len(weights) - start)  # NaN
    write(tmp_path / "model.pt", {**files, "engine/weights.safetensors": bytes(weights)})
    engine = Engine(tmp_path / "model.pt")
    positions, types = np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([0, 1])
    with pytest.raises(SimulationError, match="not finite for atom 0"):
        engine.evaluate(positions, np.eye(3), (0, 0, 0), types)
    structure = _Structure(2, types.ctypes.data, positions.ctypes.data, None)
    virial = np.empty((3, 3))
    only_virial = _Results(None, None, None, virial.ctypes.data, None)
    with pytest.raises(SimulationError, match="not finite for atom"):
        engine._call("equipot_evaluate", engine._model, ctypes.byref(structure), ctypes.byref(only_virial))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.update(version=99), "version 99, this engine reads up to 4. Upgrade equipot"),
        (lambda p: p.update(dtype="float16"), "type 'float16', expected float32 or float64"),
        (
            lambda p: p["steps"][1].update(do="attention"),
            "a step 'attention', which this engine does not know",
        ),
        (lambda p: p["steps"][1].update(inputs=["other"]), "reads 'other', which no step before it makes"),
        (lambda p: p["steps"].pop(), "do not end with one number for each atom"),
        (lambda p: p["steps"][1].update(dim_in=3), "does not fit"),
        (lambda p: p["steps"][1].update(weights="other"), "weights 'other' are missing"),
        (lambda p: p["steps"][1]["blocks"][0].__setitem__(1, 1000), "does not fit"),
        (lambda p: p.pop("harmonics"), "no member 'harmonics'"),
        (lambda p: p["species"].append("C"), "one scale and one shift|one row for each species"),
        (
            lambda p: p["steps"][3].update(inputs=p["steps"][3]["inputs"][::-1]),
            "does not fit|taken|used elsewhere",
        ),
        # What would read past the end of an array, or search neighbors for ever.
        (
            lambda p: p["steps"][1]["blocks"].extend([[0, 2**30, 2**30, 0, 0]] * 16),
            "does not fit its weights",
        ),
        (lambda p: p["steps"][3].update(inputs=["linear_1", "linear_1"]), "does not fit"),
        (lambda p: p["steps"][7]["inputs"].__setitem__(0, "interaction_3"), "does not fit"),  # not exchanged
        (lambda p: p.update(num_exchanges=0), "declares other exchanges than the 2 of up to 16 numbers"),
        (lambda p: p.update(widest_exchange=4), "declares other exchanges"),
        (lambda p: p.update(cutoff=1e300), "its cutoff must be a positive number of A, found 1e"),
        (lambda p: p.update(cutoff="3"), "its cutoff must be a positive number of A, found 0"),
    ],
)
def test_programs_that_make_no_sense_are_refused(file, tmp_path, change, message):
    files = contents(file)
    program = json.loads(files["engine/program.json"])
    change(program)
    write(tmp_path / "model.pt", {**files, "engine/program.json": json.dumps(program).encode()})
    with pytest.raises(ModelFileError, match=message):
        Engine(tmp_path / "model.pt")


def test_weights_without_numbers_are_refused(file, tmp_path):
    files = contents(file)
    program, weights = json.loads(files["engine/program.json"]), files["engine/weights.safetensors"]
    size = int.from_bytes(weights[:8], "little")
    names = json.loads(weights[8 : 8 + size])
    program["steps"][3]["paths"] = []
    names[program["steps"][3]["radial"]["table"]] |= {"shape": [100, 0], "data_offsets": [0, 0]}
    header = json.dumps(names).encode()
    files["engine/program.json"] = json.dumps(program).encode()
    files["engine/weights.safetensors"] = len(header).to_bytes(8, "little") + header + weights[8 + size :]
    write(tmp_path / "model.pt", files)
    with pytest.raises(ModelFileError, match="its weights are damaged"):
        Engine(tmp_path / "model.pt")


def test_a_strictly_local_model_that_claims_exchanges_is_refused(tmp_path):
    config = AllegroConfig(type="allegro", cutoff=CUTOFF, channels=2, l_max=1, scalar_channels=4)
    files = build_potential(config, SPECIES, 10.0, [-1.0, -2.0], 1.0).eval().program().files()
    program = json.loads(files["engine/program.json"]) | {"num_exchanges": 1}
    write(tmp_path / "model.pt", {**files, "engine/program.json": json.dumps(program).encode()})
    with pytest.raises(ModelFileError, match="declares other exchanges than the 0"):
        Engine(tmp_path / "model.pt")


def test_files_that_are_no_models_are_refused(file, tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        Engine(tmp_path / "missing.pt")
    with pytest.raises(ModelFileError, match="no such file"):
        Engine("a" * 5000)
    (tmp_path / "text.pt").write_text("energy")
    with pytest.raises(ModelFileError, match="truncated, or not a model"):
        Engine(tmp_path / "text.pt")
    write(tmp_path / "newer.pt", {}, version="2")
    with pytest.raises(ModelFileError, match="written in model format 2"):
        Engine(tmp_path / "newer.pt")
    write(tmp_path / "old.pt", {})
    with pytest.raises(ModelFileError, match=r"without an engine.*Run 'equipot deploy' again"):
        Engine(tmp_path / "old.pt")
    write(tmp_path / "outputs.pt", {"extra/outputs": '{"dipole": {}}'})
    with pytest.raises(ModelFileError, match=r"more than energies .*no program .*the file by TorchScript"):
        Engine(tmp_path / "outputs.pt")
    write(tmp_path / "old.pt", {"extra/outputs": "{}"})
    with pytest.raises(ModelFileError, match="without an engine"):
        Engine(tmp_path / "old.pt")


def test_damaged_files_are_refused(file, tmp_path):
    """A changed or missing byte anywhere: refused, or, in what is not read, without any effect."""
    whole = file.read_bytes()
    arguments = [[0.0, 0, 0], [1.1, 0, 0]], np.eye(3), (0, 0, 0), [0, 1]
    right = Engine(file).evaluate(*arguments)
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged.pt"
    refused = 0
    for n in range(300):
        content = bytearray(whole)
        if n % 3:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        else:
            del content[rng.integers(len(content)) :]
        damaged.write_bytes(content)
        try:
            found = Engine(damaged).evaluate(*arguments)
        except ModelFileError:
            refused += 1
        else:
            np.testing.assert_array_equal(found.forces, right.forces)
    assert refused > 280
