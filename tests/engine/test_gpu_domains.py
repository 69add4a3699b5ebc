"""Domains on GPUs that exchange the rows of their border, on the emulated device."""

import ctypes
import json
import threading
import zipfile

import numpy as np
import pytest
from domains import evaluate_domain, exchange
from emulated import ALLEGRO, CUTOFF, L_MAX_3, NEQUIP, TOLERANCE, Crystal, assert_same, crystal, model

from equipot.config import AllegroConfig, NequIPConfig
from equipot.data.neighbors import neighbor_list
from equipot.engine.library import Engine, _Edges, _Results
from equipot.errors import DataError, SimulationError


class Ranks:
    """Domains of a crystal, each with a thread of its own; one runs at a time, until it has to wait.

    ``places``: they are given positions, otherwise edges.
    """

    def __init__(self, given: Crystal, number: int, places: bool = False, gpu_aware: bool = False):
        self.given, self.places, self.gpu_aware, self.moved = given, places, gpu_aware, False
        self.number, self.barrier, self.turn = number, threading.Barrier(number), threading.Lock()
        self.rows: list = [None] * number
        self.places_sent: list = [None] * number
        self.calls = [0] * number
        index, shift = neighbor_list(given.positions, given.cell, np.ones(3, dtype=bool), CUTOFF)
        vec = given.positions[index[1]] - given.positions[index[0]] + shift @ given.cell
        owner = np.arange(len(given.types)) % number  # as scattered as can be
        if number == 4:
            owner[owner == 3] = 2  # the last one has no atoms
        place = np.zeros(len(owner), dtype=np.int64)
        for rank in range(number):
            place[owner == rank] = np.arange((owner == rank).sum())
        self.domains: list = []
        self.shifts: list = []  # of each domain's atoms, in cells
        for rank in range(number):
            own = np.flatnonzero(owner == rank)
            here = owner[index[0]] == rank
            images = np.column_stack([index[1], shift])[here]
            is_own = (owner[images[:, 0]] == rank) & ~images[:, 1:].any(axis=1)
            ghosts, which = np.unique(images[~is_own], axis=0, return_inverse=True)
            neighbor = np.empty(len(images), dtype=np.int64)
            neighbor[is_own] = place[images[is_own, 0]]
            neighbor[~is_own] = len(own) + which.reshape(-1)
            atoms = np.concatenate([own, ghosts[:, 0].astype(np.int64)]) if len(own) else own
            arrays = given.types[atoms], place[index[0][here]], neighbor, vec[here]
            self.domains.append((atoms, len(own), owner[atoms], place[atoms], arrays))
            self.shifts.append(np.concatenate([np.zeros((len(own), 3)), ghosts[:, 1:]]))

    def evaluate(self, engines: list[Engine]) -> tuple[np.ndarray, np.ndarray]:
        """Energies and forces of all atoms."""
        num_atoms = 1 + max(atoms.max(initial=-1) for atoms, *_ in self.domains)
        energies, forces, errors = np.zeros(num_atoms), np.zeros((num_atoms, 3)), []

        def run(rank: int) -> None:
            with self.turn:
                try:
                    atoms, num_owned, *_ = self.domains[rank]
                    of_atoms, pull = self._of_rank(engines[rank], rank)
                    energies[atoms[:num_owned]] = of_atoms[:num_owned]
                    assert not of_atoms[num_owned:].any()
                    np.add.at(forces, atoms, pull)
                except Exception as error:
                    errors.append(error)
                    self.barrier.abort()

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(self.number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return energies, forces

    def _of_rank(self, engine: Engine, rank: int) -> tuple[np.ndarray, np.ndarray]:
        atoms, num_owned, _, _, arrays = self.domains[rank]

        # Which of our atoms are whose ghosts, and where their rows lie among those that we send.
        others = [self._ghosts_of(other, rank) for other in range(self.number)]
        ends = np.cumsum([len(ghosts) for ghosts in others])
        self.places_sent[rank] = [slice(end - len(g), end) for end, g in zip(ends, others, strict=True)]
        sent = np.concatenate([self.domains[other][3][g] for other, g in enumerate(others)])

        def together(rows, fetch) -> None:
            self.calls[rank] += 1
            self.rows[rank] = rows
            self._together()
            fetch()
            self._together()

        def to_ghosts(rows, ghosts):
            def fetch():
                for other in range(self.number):
                    mine = self._ghosts_of(rank, other) - num_owned
                    ghosts[mine] = self.rows[other][self.places_sent[other][rank]]

            together(rows, fetch)

        def to_owners(ghosts, rows):
            def fetch():
                for other, theirs in enumerate(others):
                    rows[self.places_sent[rank][other]] = self.rows[other][theirs - self.domains[other][1]]

            together(ghosts, fetch)

        link = exchange(num_owned, sent, len(atoms) - num_owned, to_ghosts, to_owners, self.gpu_aware)
        if self.places:
            positions = self.given.positions[atoms] + self.shifts[rank] @ self.given.cell
            types, rows = self.given.types[atoms], np.arange(len(atoms))
            found, _ = evaluate_domain(engine, num_owned, num_owned, types, positions, rows, self.moved, link)
            return found.atom_energies, found.forces
        arrays = [np.ascontiguousarray(a) for a in arrays]
        types, center, neighbor, vec = (a.ctypes.data for a in arrays)
        energies, forces = np.empty(len(atoms)), np.empty((len(atoms), 3))
        edges = _Edges(len(atoms), len(arrays[3]), types, None, center, neighbor, vec, ctypes.addressof(link))
        results = _Results(None, energies.ctypes.data, forces.ctypes.data)
        engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(results))
        return energies, forces

    def _ghosts_of(self, rank: int, owner: int) -> np.ndarray:
        _, num_owned, owners, _, _ = self.domains[rank]
        return num_owned + np.flatnonzero(owners[num_owned:] == owner)

    def _together(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait(timeout=60)
        finally:
            self.turn.acquire()


@pytest.mark.parametrize("places", [False, True], ids=["edges", "places"])
@pytest.mark.parametrize("gpu_aware", [False, True], ids=["host", "aware"])
@pytest.mark.parametrize(
    "number, dtype", [(1, "float64"), (2, "float64"), (3, "float64"), (4, "float64"), (2, "float32")]
)
def test_domains_on_gpus(gpu, number, dtype, gpu_aware, places, tmp_path_factory):
    """Each on a GPU; of four, one has no atoms. Only rows of the border cross to the host and back."""
    config = L_MAX_3.model_copy(update={"dtype": dtype})
    path, tolerance = (
        model(config, tmp_path_factory.mktemp("model")),
        TOLERANCE if dtype == "float64" else 2e-5,
    )
    given = crystal(24)
    right = Engine(path).evaluate_edges(*given.edges(), given.types)
    ranks, engines = (
        Ranks(given, number, places, gpu_aware),
        [Engine(path, device="cuda") for _ in range(number)],
    )
    if places:  # the border is known, and the neighbor lists are made, in the first evaluation
        ranks.evaluate(engines)
        ranks.moved = True
    used = gpu.of(lambda: ranks.evaluate(engines))
    energies, forces = ranks.evaluate(engines)
    np.testing.assert_allclose(energies, right.atom_energies, rtol=tolerance)
    np.testing.assert_allclose(forces, right.forces, rtol=0, atol=tolerance * np.abs(right.forces).max())
    assert ranks.calls == [(3 if places else 2) * 2 * 2] * number  # both ways in two layers
    # Down come rows that are ghosts elsewhere, on the way back gradients of ghosts, and the results.
    ghosts = sum(len(atoms) - num_owned for atoms, num_owned, *_ in ranks.domains)
    results = sum(4 * 8 * len(atoms) for atoms, *_ in ranks.domains)
    if places:  # virials, their sums with that of the energies, and what is too close
        results += sum(9 * 8 * len(atoms) + 8 * (10 * (len(atoms) > 0) + 2) for atoms, *_ in ranks.domains)
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read("model/engine/program.json"))
    most = facts["num_exchanges"] * facts["widest_exchange"] * (4 if dtype == "float32" else 8)
    if gpu_aware:
        assert used.bytes_down == results
    else:
        assert results < used.bytes_down <= results + most * 2 * ghosts


def spread_out(num_atoms: int) -> Crystal:
    """Of so few edges to an atom that warps do not share them."""
    given = crystal(num_atoms)
    return given._replace(positions=1.6 * given.positions, cell=1.6 * given.cell)


@pytest.mark.parametrize("places", [False, True], ids=["edges", "places"])
@pytest.mark.parametrize("gpu_aware", [False, True], ids=["host", "aware"])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_device_works_while_rows_are_exchanged(gpu, number, gpu_aware, places, tmp_path):
    """On atoms that need no ghosts (in one domain some, else none), and then on gradients of owned atoms."""
    path, given = model(L_MAX_3, tmp_path), spread_out(64)
    vec, index = given.edges()
    assert 3 * len(given.types) < len(vec)
    right = Engine(path).evaluate_edges(vec, index, given.types)
    ranks = Ranks(given, number, places, gpu_aware)
    engines = [Engine(path, device="cuda") for _ in range(number)]
    for ranks.moved in (False, places):
        energies, forces = ranks.evaluate(engines)
        np.testing.assert_allclose(energies, right.atom_energies, rtol=TOLERANCE)
        np.testing.assert_allclose(forces, right.forces, rtol=0, atol=TOLERANCE * np.abs(right.forces).max())
    if number == 1:
        # In each of two layers messages of some atoms; gradients of owned atoms, sums, two linear maps.
        assert gpu.of(lambda: ranks.evaluate(engines)).beside == 2 * (1 + 4)


@pytest.mark.parametrize("places", [False, True], ids=["edges", "places"])
def test_memory_that_is_short_while_rows_are_exchanged(gpu, places, tmp_path):
    """Wherever an evaluation ends, the next one is right."""
    path, given = model(L_MAX_3, tmp_path), spread_out(24)
    right = Engine(path).evaluate_edges(*given.edges(), given.types)
    engine = Engine(path, device="cuda")

    def evaluate() -> None:
        ranks = Ranks(given, 1, places)
        try:
            energies, forces = ranks.evaluate([engine])
        finally:
            calls.append(ranks.calls[0])
        np.testing.assert_allclose(energies, right.atom_energies, rtol=TOLERANCE)
        np.testing.assert_allclose(forces, right.forces, rtol=0, atol=TOLERANCE * np.abs(right.forces).max())

    calls: list[int] = []
    for room in range(150_000, 2_000_000, 10_000):
        try:
            gpu.most_memory(evaluate, room)
        except SimulationError as error:
            assert "Not enough memory" in str(error)
        else:
            break
    assert {1, 2, 3} & set(calls)  # some have ended after the first exchange
    evaluate()


MODELS = {
    "nequip": NequIPConfig(**NEQUIP | {"layers": 2}, channels=4, l_max=1),
    "allegro": AllegroConfig(**ALLEGRO, l_max=1),
}


class Places:
    """A crystal as one process of LAMMPS has it: images of its atoms around it, in places of their own."""

    def __init__(self, given: Crystal, reach: float):
        self.given, n = given, len(given.types)
        index, shift = neighbor_list(given.positions, given.cell, np.ones(3, dtype=bool), reach)
        images = np.unique(np.column_stack([index[1], shift]), axis=0)
        images = images[images[:, 1:].any(axis=1)].astype(np.int64)
        hidden = 3  # local places of atoms that the model does not see, in between and behind
        self.local = np.insert(np.arange(n), [2, 5, n], -1)
        self.num_local = n + hidden
        self.atoms = np.concatenate([self.local, images[:, 0], [-1]])
        self.shifts = np.concatenate([np.zeros((self.num_local, 3)), images[:, 1:], np.zeros((1, 3))])

    def positions(self, given: Crystal) -> np.ndarray:
        found = given.positions[self.atoms] + self.shifts @ given.cell
        found[self.atoms < 0] = given.positions[0] + 0.02  # where a seen atom would be too close
        return found

    def evaluate(self, engine: Engine, given: Crystal, **more):
        n = len(given.types)
        return evaluate_domain(
            engine, n, self.num_local, given.types, self.positions(given), self.atoms, **more
        )


def of_edges(engine: Engine, given: Crystal):
    vec, index = given.edges()
    return engine.evaluate_edges(vec, index, given.types)


@pytest.mark.parametrize("where", ["cpu", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_places_give_what_their_edges_give(gpu, name, where, tmp_path):
    """Images share their atom's row; of atoms that move little the list stays, else it is made anew."""
    path = model(MODELS[name], tmp_path)
    cpu, engine = Engine(path), Engine(path, device=where)
    given, rng = crystal(24), np.random.default_rng(3)
    places = Places(given, CUTOFF + 1.0)
    assert_same(places.evaluate(engine, given)[0], of_edges(cpu, given))
    near = given._replace(positions=given.positions + rng.uniform(-0.1, 0.1, given.positions.shape))
    far = given._replace(positions=given.positions + rng.uniform(-0.28, 0.28, given.positions.shape))
    for step, waits in ((near, 1), (far, 2), (given, 2)):
        right = of_edges(cpu, step)
        used = gpu.of(lambda step=step: places.evaluate(engine, step, moved=True, all_rows=False))
        assert_same(places.evaluate(engine, step, moved=True)[0], right)
        if where == "cuda":
            assert used.waits == waits
        if where == "cuda" and waits == 1:  # positions go up, forces come down, and some sums
            assert used.bytes_up == 24 * len(places.atoms)
            assert used.bytes_down <= 24 * len(given.types) + 200
            assert used.allocations == 0 and used.launches <= 60, used
    other = Places(crystal(20, seed=5), CUTOFF + 0.1)
    assert_same(other.evaluate(engine, other.given)[0], of_edges(cpu, other.given))


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_edges_that_are_watched(gpu, where, tmp_path):
    """Each pair of species by its own distance."""
    engine = Engine(model(MODELS["allegro"], tmp_path), device=where)
    given = crystal(24)
    places = Places(given, CUTOFF)
    vec, index = given.edges()
    pairs = given.types[index]
    distances = np.linalg.norm(vec, axis=1)
    closest = np.full((3, 3), np.inf)
    np.minimum.at(closest, tuple(pairs), distances)
    assert not places.evaluate(engine, given)[1]
    assert not places.evaluate(engine, given, watched=closest * (1 - 1e-9))[1]
    for one, other in ((0, 0), (0, 2), (1, 2)):
        watched = np.zeros((3, 3))
        watched[one, other] = watched[other, one] = closest[one, other] * (1 + 1e-9)
        assert places.evaluate(engine, given, watched=watched)[1]
        assert places.evaluate(engine, given, watched=watched, moved=True)[1]


@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_domains_that_are_refused(gpu, where, tmp_path):
    engine = Engine(model(MODELS["nequip"], tmp_path), device=where)
    given = crystal(8)
    places = Places(given, CUTOFF)
    ids = np.arange(100, 108)
    broken = given.positions.copy()
    broken[6] = broken[3] + 0.03
    for positions, moved in ((broken, False), (given.positions, False), (broken, True)):
        step = given._replace(positions=positions)
        if positions is given.positions:
            places.evaluate(engine, step)
            continue
        with pytest.raises(
            DataError, match=r"toms 10[36] and 10[36] are 0\.05196 A apart; expected at least 0\.1"
        ):
            places.evaluate(engine, step, ids=ids, moved=moved)
    positions, right = places.positions(given), places.atoms
    for place, atom in ((3, 2), (int(np.flatnonzero(right == 5)[-1]), 5)):
        broken = positions.copy()
        broken[place] = np.nan
        assert right[place] == atom
        with pytest.raises(DataError, match=rf"position of atom {100 + atom} is not finite"):
            evaluate_domain(engine, 8, places.num_local, given.types, broken, right, ids=ids)
    hidden = np.where((right < 0)[:, None], np.nan, positions)
    found, _ = evaluate_domain(engine, 8, places.num_local, given.types, hidden, right)
    np.testing.assert_array_equal(found.forces, places.evaluate(engine, given)[0].forces)
    alone = given.types[:2], positions[:2], np.arange(2)
    with pytest.raises(DataError, match="atoms that other domains own take an exchange"):
        evaluate_domain(engine, 1, 1, *alone)
    for atoms in (right + 1, np.where(right == 3, 2, right), np.full(len(right), -1)):
        with pytest.raises(DataError, match=r"owned ones must be at one of|is at none of"):
            evaluate_domain(engine, 8, places.num_local, given.types, positions, atoms)
