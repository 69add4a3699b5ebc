"""Domains on GPUs that exchange the rows of their border, on the emulated device."""

import ctypes
import json
import threading
import zipfile

import numpy as np
import pytest
from emulated import CUTOFF, L_MAX_3, TOLERANCE, Crystal, crystal, model

from equipot.data.neighbors import neighbor_list
from equipot.engine.library import Engine, _Edges, _Results

CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Exchange(ctypes.Structure):
    """equipot_exchange"""

    _fields_ = (
        ("context", ctypes.c_void_p),
        ("num_owned", ctypes.c_int64),
        ("copy_to_ghosts", CALL),
        ("add_to_owners", CALL),
    )


class Ranks:
    """Domains of a crystal, each with a thread of its own; one runs at a time, until it has to wait."""

    def __init__(self, given: Crystal, number: int, dtype: str):
        self.number_type = ctypes.c_float if dtype == "float32" else ctypes.c_double
        self.number, self.barrier, self.turn = number, threading.Barrier(number), threading.Lock()
        self.rows: list = [None] * number
        self.calls = [0] * number
        index, shift = neighbor_list(given.positions, given.cell, np.ones(3, dtype=bool), CUTOFF)
        vec = given.positions[index[1]] - given.positions[index[0]] + shift @ given.cell
        owner = np.arange(len(given.types)) % number  # as scattered as can be
        if number == 4:
            owner[owner == 3] = 2  # the last one has no atoms
        place = np.zeros(len(owner), dtype=np.int64)
        for rank in range(number):
            place[owner == rank] = np.arange((owner == rank).sum())
        self.domains = []
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
        atoms, num_owned, ranks, places, arrays = self.domains[rank]

        def in_turn(work) -> CALL:
            def call(_, address, count, width):
                self.calls[rank] += 1
                pointer = ctypes.cast(address, ctypes.POINTER(self.number_type))
                rows = np.ctypeslib.as_array(pointer, (count, width)) if count else np.empty((0, width))
                self.rows[rank] = rows
                self._together()
                work(rows)
                self._together()

            return CALL(call)

        def copy(rows):
            for n in range(num_owned, len(atoms)):
                rows[n] = self.rows[ranks[n]][places[n]]

        def add(rows):
            for other, (_, owned, their_ranks, their_places, _) in enumerate(self.domains):
                mine = np.flatnonzero((their_ranks == rank) & (np.arange(len(their_ranks)) >= owned))
                np.add.at(rows, their_places[mine], self.rows[other][mine])

        exchange = Exchange(None, num_owned, in_turn(copy), in_turn(add))
        arrays = [np.ascontiguousarray(a) for a in arrays]
        types, center, neighbor, vec = (a.ctypes.data for a in arrays)
        energies, forces = np.empty(len(atoms)), np.empty((len(atoms), 3))
        edges = _Edges(
            len(atoms), len(arrays[3]), types, None, center, neighbor, vec, ctypes.addressof(exchange)
        )
        results = _Results(None, energies.ctypes.data, forces.ctypes.data)
        engine._call("equipot_evaluate_edges", engine._model, ctypes.byref(edges), ctypes.byref(results))
        return energies, forces

    def _together(self) -> None:
        self.turn.release()
        try:
            self.barrier.wait(timeout=60)
        finally:
            self.turn.acquire()


@pytest.mark.parametrize(
    "number, dtype", [(1, "float64"), (2, "float64"), (3, "float64"), (4, "float64"), (2, "float32")]
)
def test_domains_on_gpus(gpu, number, dtype, tmp_path_factory):
    """Each on a GPU; of four, one has no atoms. Only rows of the border cross to the host and back."""
    config = L_MAX_3.model_copy(update={"dtype": dtype})
    path, tolerance = (
        model(config, tmp_path_factory.mktemp("model")),
        TOLERANCE if dtype == "float64" else 2e-5,
    )
    given = crystal(24)
    right = Engine(path).evaluate_edges(*given.edges(), given.types)
    ranks, engines = Ranks(given, number, dtype), [Engine(path, device="cuda") for _ in range(number)]
    used = gpu.of(lambda: ranks.evaluate(engines))
    energies, forces = ranks.evaluate(engines)
    np.testing.assert_allclose(energies, right.atom_energies, rtol=tolerance)
    np.testing.assert_allclose(forces, right.forces, rtol=0, atol=tolerance * np.abs(right.forces).max())
    assert ranks.calls == [2 * (2 * 2 + 1)] * number  # both ways in two layers, and once to know the border
    # Down come rows of the border and, on the way back, gradients of ghosts; beside them the results.
    ghosts = sum(len(atoms) - num_owned for atoms, num_owned, *_ in ranks.domains)
    border = 0
    for rank in range(number):
        wanted = [
            places[num_owned:][owners[num_owned:] == rank]
            for _, num_owned, owners, places, _ in ranks.domains
        ]
        border += len(np.unique(np.concatenate(wanted)))
    results = sum(4 * 8 * len(atoms) for atoms, *_ in ranks.domains)
    with zipfile.ZipFile(path) as archive:
        facts = json.loads(archive.read("model/engine/program.json"))
    most = facts["num_exchanges"] * facts["widest_exchange"]
    assert results < used.bytes_down <= results + ctypes.sizeof(ranks.number_type) * most * (ghosts + border)
