"""equipot_exchange and equipot_domain of equipot.h, by ctypes."""

import ctypes

import numpy as np

from equipot.engine.library import Engine, Evaluation, _Results

MOVE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


class Exchange(ctypes.Structure):
    _fields_ = (
        ("context", ctypes.c_void_p),
        ("num_owned", ctypes.c_int64),
        ("num_sent", ctypes.c_int64),
        ("sent", ctypes.c_void_p),
        ("gpu_aware", ctypes.c_int32),
        ("to_ghosts", MOVE),
        ("to_owners", MOVE),
    )


def exchange(num_owned: int, sent, num_ghosts: int, to_ghosts, to_owners, gpu_aware: bool = False):
    """``to_ghosts(rows, ghosts)``, ``to_owners(ghosts, rows)``: (rows, row_bytes), which fill the second."""
    sent = np.ascontiguousarray(sent, dtype=np.int64)

    def bytes_at(address, rows, row_bytes):
        if rows == 0:
            return np.empty((0, row_bytes), dtype=np.uint8)
        return np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (rows, row_bytes))

    def forth(_, rows, ghosts, row_bytes):
        to_ghosts(bytes_at(rows, len(sent), row_bytes), bytes_at(ghosts, num_ghosts, row_bytes))

    def back(_, ghosts, rows, row_bytes):
        to_owners(bytes_at(ghosts, num_ghosts, row_bytes), bytes_at(rows, len(sent), row_bytes))

    found = Exchange(None, num_owned, len(sent), sent.ctypes.data, gpu_aware, MOVE(forth), MOVE(back))
    found.keeps = sent
    return found


class Domain(ctypes.Structure):
    _fields_ = (
        ("num_atoms", ctypes.c_int64),
        ("num_owned", ctypes.c_int64),
        ("types", ctypes.c_void_p),
        ("num_places", ctypes.c_int64),
        ("num_local", ctypes.c_int64),
        ("positions", ctypes.c_void_p),
        ("atoms", ctypes.c_void_p),
        ("moved", ctypes.c_int32),
        ("exchange", ctypes.c_void_p),
        ("ids", ctypes.c_void_p),
        ("watched", ctypes.c_void_p),
    )


def evaluate_domain(
    engine: Engine, num_owned: int, num_local: int, types, positions, atoms, moved=False, exchange=None,
    ids=None, watched=None, all_rows=True,
) -> tuple[Evaluation, bool]:  # fmt: skip
    """What equipot_evaluate_domain gives, and whether an edge is shorter than what is watched."""
    arrays = [
        np.ascontiguousarray(a) if a is not None else None for a in (types, positions, atoms, ids, watched)
    ]
    types, positions, atoms, ids, watched = (None if a is None else a.ctypes.data for a in arrays)
    num_atoms = len(arrays[0])
    domain = Domain(
        num_atoms, num_owned, types, len(arrays[1]), num_local, positions, atoms, moved,
        None if exchange is None else ctypes.addressof(exchange), ids, watched,
    )  # fmt: skip
    energies, forces, virials = np.empty(num_atoms), np.empty((num_atoms, 3)), np.empty((num_atoms, 3, 3))
    energy, virial = np.empty(1), np.empty((3, 3))
    rows = (energies.ctypes.data, virials.ctypes.data) if all_rows else (None, None)
    closer = np.full(1, -1, dtype=np.int32)
    results = _Results(
        energy.ctypes.data,
        rows[0],
        forces.ctypes.data,
        virial.ctypes.data,
        rows[1],
        closer=closer.ctypes.data,
    )
    engine._call("equipot_evaluate_domain", engine._model, *map(ctypes.byref, (domain, results)))
    if all_rows:
        np.testing.assert_allclose(energy[0], energies.sum(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(virial, virials.sum(axis=0), rtol=0, atol=1e-10)
    return Evaluation(energies, forces, virials), bool(closer[0])
