"""Uncertainties by the C interface: wrong arguments and programs that make no sense."""

import ctypes
import json
import zipfile

import numpy as np
import pytest
import torch

from equipot.config import AllegroConfig, NequIPConfig
from equipot.engine.library import Engine, _Results, _Structure, load_library
from equipot.errors import DataError, ModelFileError, SimulationError
from equipot.models.build import build_potential

MODELS = {
    "nequip": NequIPConfig(type="nequip", cutoff=3.0, layers=3, channels=4, l_max=1, radial_hidden=(8,)),
    "allegro": AllegroConfig(type="allegro", cutoff=3.0, channels=2, l_max=1, scalar_channels=4),
}


@pytest.fixture(params=MODELS)
def files(request):
    """What a model file holds for the engine; R is the unit matrix."""
    torch.manual_seed(3)
    program = build_potential(MODELS[request.param], ["H", "O"], 10.0, [-1.0, -2.0], 1.0).eval().program()
    program.add_uncertainty(torch.eye(program.feature_width, dtype=torch.float64))
    return program.files()


def opened(files, path, change=lambda program: None):
    program = json.loads(files["engine/program.json"])
    change(program)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/format_version", "1")
        archive.writestr("model/engine/program.json", json.dumps(program))
        archive.writestr("model/engine/weights.safetensors", files["engine/weights.safetensors"])
    return Engine(path)


def test_arguments(files, tmp_path):
    engine, library = opened(files, tmp_path / "model.pt"), load_library()
    width = engine.feature_width
    rows, sigma = np.ones((2, width)), np.ones(2)
    given = rows.ctypes.data_as(ctypes.c_void_p), sigma.ctypes.data_as(ctypes.c_void_p)
    call, nothing = library.equipot_energy_uncertainty, ctypes.c_void_p()
    assert call(engine._model, ctypes.c_int64(2), *given) == 0
    np.testing.assert_allclose(sigma, np.sqrt(width))
    assert call(engine._model, ctypes.c_int64(0), nothing, nothing) == 0
    for model, count, features, to, message in (
        (nothing, 2, *given, b"model is null"),
        (engine._model, -1, *given, b"num_rows is negative"),
        (engine._model, 2, nothing, given[1], b"features is null"),
        (engine._model, 2, given[0], nothing, b"sigma is null"),
    ):
        assert call(model, ctypes.c_int64(count), features, to) == 1
        assert library.equipot_message() == message
    with pytest.raises(DataError, match=rf"features must be \(n, {width}\), but are \(2, 1\)"):
        engine.uncertainty(np.ones((2, 1)))
    with pytest.raises(SimulationError, match="uncertainty of row 1 is not finite: its features"):
        engine.uncertainty(np.array([[1.0] * width, [np.nan] * width]))

    plain = opened(files, tmp_path / "plain.pt", lambda program: program.pop("uncertainty"))
    positions, types = np.eye(3), np.zeros(3, dtype=np.int64)
    structure = _Structure(3, types.ctypes.data, positions.ctypes.data, None)
    results = _Results(features=rows.ctypes.data)
    with pytest.raises(DataError, match=r"plain.pt: deployed without an uncertainty"):
        plain._call("equipot_evaluate", plain._model, ctypes.byref(structure), ctypes.byref(results))
    # Features alone are given without the rest.
    rows, all_rows = np.full((3, width), np.nan), engine.evaluate(positions, np.eye(3), (0, 0, 0), types)
    results = _Results(features=rows.ctypes.data)
    engine._call("equipot_evaluate", engine._model, ctypes.byref(structure), ctypes.byref(results))
    np.testing.assert_array_equal(rows, all_rows.features)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": "other"}, "reads 'other', which no step before it makes"),
        ({"width": 1000}, r"its last layer has \d+ features, expected 1000"),
        ({"width": 0}, "'width' of a step must be a whole number from 1"),
        ({"width": 2**40}, "'width' of a step must be a whole number"),
        ({"first": 1}, r"its last layer has \d+ features, expected \d+|weights"),
        ({"first": -1}, "'first' of a step must be a whole number from 0"),
        ({"weights": "other"}, "the weights 'other' are missing"),
        ({"weights": "shift"}, r"the weights 'shift' are 2 numbers, expected \d+"),
        ({"array": "envelope_0"}, "has 0 features|no step before it makes"),
        ({"array": "linear_4"}, "features of its last layer are gone|which no step before it makes"),
        (None, "no member 'array'"),
    ],
)
def test_programs_that_make_no_sense_are_refused(files, tmp_path, change, message):
    def changed(program):
        program["uncertainty"] = {} if change is None else program["uncertainty"] | change

    with pytest.raises(ModelFileError, match=message):
        opened(files, tmp_path / "model.pt", changed)
