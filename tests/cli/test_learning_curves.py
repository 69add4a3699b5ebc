"""scripts/learning_curves: splits, equal effort, curves and slopes, and going on where it stopped."""

import importlib.util
import json
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest

from equipot.errors import ConfigError, DataError

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "learning_curves.py"
TINY = ["model.channels=2", "model.layers=1", "model.cutoff=4.0", "run.device=cpu", "training.batch_size=5"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("learning_curves", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)
        spec.loader.exec_module(module)
    module.EPOCH_FRAMES = 20
    return module


@pytest.fixture(scope="module")
def trainings(script):
    """The module that it shares with scripts/pareto."""
    return sys.modules[script.run_one.__module__]


@pytest.fixture(scope="module")
def done(script, workspace, tmp_path_factory):
    """What the whole command leaves for two sizes of each of two models, and its command line."""
    output = tmp_path_factory.mktemp("curves")
    options = ["--sizes", "2", "5", "--l-max", "1", "--steps", "8", "--held-out", "4"]
    files = [str(workspace.data), "--test", str(workspace.test), "--validation", "3"]
    command = [*files, *options, "--output", str(output), *TINY]
    script.main(script.parse(command))
    return output, command


def positions(file: Path) -> list[bytes]:
    return [atoms.positions.tobytes() for atoms in ase.io.read(file, ":")]


def test_sets_are_disjoint_nested_and_equally_long(done):
    data = done[0] / "data"
    small, large = (positions(data / f"train_{size}.xyz") for size in (2, 5))
    assert (len(small), len(set(small)), len(large), len(set(large))) == (20, 2, 20, 5)
    assert set(small) < set(large)
    held_out, validation = (set(positions(data / f"{name}.xyz")) for name in ("held_out", "validation"))
    assert (len(held_out), len(validation)) == (4, 3)
    assert not held_out & validation and not (held_out | validation) & set(large)


def test_labels_survive_the_split(done, workspace):
    original = {atoms.positions.tobytes(): atoms for atoms in ase.io.read(workspace.data, ":")}
    for copy in ase.io.read(done[0] / "data" / "train_5.xyz", ":5"):
        atoms = original[copy.positions.tobytes()]
        assert copy.get_potential_energy() == atoms.get_potential_energy()
        assert np.array_equal(copy.get_forces(), atoms.get_forces())
        assert np.array_equal(copy.get_stress(), atoms.get_stress())


def test_every_training_makes_the_steps_asked_for(done):
    for run in sorted((done[0] / "runs").iterdir()):
        last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
        assert float(last[1]) == 8  # column "step"
    assert len(list((done[0] / "runs").iterdir())) == 4


def test_results_and_plot(done, trainings, workspace):
    results = json.loads((done[0] / "results.json").read_text())
    assert set(results["curves"]) == {"held-out frames of train", "test"}
    assert results["recipe"] == "crystals.yaml"  # periodic frames with stresses
    curves = results["curves"]["test"]
    assert list(curves) == ["forces", "energy", "stress"]
    for model, name in (("nequip", "NequIP"), ("allegro", "Allegro")):
        evaluated = trainings.evaluate(done[0] / "runs" / f"{model}_l1_n5", [workspace.test]).comparison
        for quantity, of_model in curves.items():
            curve = of_model[f"{name}, l_max 1"]
            assert curve["frames"] == [2, 5]
            error = 1e3 * np.abs(evaluated.error(quantity)).mean()  # in meV
            assert curve["mae"][1] == pytest.approx(error, rel=1e-9)
    assert (done[0] / "learning_curves.png").read_bytes().startswith(b"\x89PNG")


def test_finished_trainings_are_kept(done, script, trainings, monkeypatch):
    monkeypatch.setattr(trainings, "train", lambda *_, **__: pytest.fail("trained again"))
    before = json.loads((done[0] / "results.json").read_text())
    script.main(script.parse(done[1]))
    assert json.loads((done[0] / "results.json").read_text()) == before


@pytest.mark.parametrize(
    "stopped", [{"stopped": "interrupted"}, {}]
)  # stopped by Ctrl-C; killed while evaluating
def test_an_interrupted_training_is_resumed(done, script, trainings, monkeypatch, stopped):
    run = done[0] / "runs" / "nequip_l1_n2"
    metrics = json.loads((run / "metrics.json").read_text())
    rest = {key: metrics[key] for key in metrics if key != "stopped"}
    (run / "metrics.json").write_text(json.dumps({**rest, **stopped}))
    resumed = []

    def train(config, resume, overwrite):
        resumed.append(resume)
        (run / "metrics.json").write_text(json.dumps(metrics))
        return script.argparse.Namespace(stopped="finished")

    monkeypatch.setattr(trainings, "train", train)
    script.main(script.parse(done[1]))
    assert resumed == [run]


@pytest.mark.parametrize("change", ["model.channels=3", "training.learning_rate=0.5"])
def test_other_settings_are_refused(done, script, change):
    with pytest.raises(ConfigError, match="other settings"):
        script.main(script.parse([*done[1], change]))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--seed", "1"], "other frames"),
        (["--sizes", "10"], "leave 9, fewer"),
        (["--test", "no.xyz"], "no file"),
    ],
)
def test_bad_data_are_refused(done, script, option, message):
    with pytest.raises(DataError, match=message):
        script.main(script.parse([*done[1], *option]))


def test_tests_with_other_elements_are_refused_before_the_first_training(done, script, workspace, tmp_path):
    other = ase.io.read(workspace.test, 0)
    other.symbols[0] = "U"
    ase.io.write(tmp_path / "other.xyz", other)
    command = [str(workspace.data), "--test", str(tmp_path / "other.xyz"), "--output", str(tmp_path / "out")]
    with pytest.raises(DataError, match=r"other\.xyz has U, which .* does not have"):
        script.main(script.parse([*command, "--steps", "8", *TINY]))
    assert not (tmp_path / "out").exists()


def test_seeds_draw_other_frames_and_their_spread_is_shown(script, workspace, tmp_path):
    options = ["--sizes", "3", "--models", "nequip", "--l-max", "0", "--seeds", "3", "--validation", "3"]
    arguments = script.parse([str(workspace.data), *options, "--output", str(tmp_path), *TINY])
    script.write_sets(script.read_pool(arguments), [3], arguments)
    todo = script.configurations(arguments, [3])
    assert [config.run.seed for _, config in todo] == [0, 1, 2]
    drawn = [frozenset(positions(Path(config.data.train[0]))) for _, config in todo]
    held_out = positions(tmp_path / "data" / "held_out.xyz")
    assert len(set(drawn)) == 3 and not set(held_out) & set.union(*map(set, drawn))

    values, quantities = (1.0, 2.0, 6.0), {"quantities": ["forces"]}
    runs = [
        {**what, **quantities, "errors": {"test": {"forces_mae": value}}}
        for (what, _), value in zip(todo, values, strict=True)
    ]
    curve = script.summarize(runs, "mae")["test"]["forces"]["NequIP, l_max 0"]
    assert curve["mae"] == [3.0] and curve["spread"] == [pytest.approx(7**0.5)]
    assert "3 ± 2.6" in script.tables(script.summarize(runs, "mae"), "mae")[0].columns[1]._cells


def test_slope_of_a_power_law(script):
    sizes = [10, 25, 100]
    assert script.slope(sizes, [3.0 * size**-0.7 for size in sizes]) == pytest.approx(-0.7, abs=1e-12)
    assert script.slope([10], [3.0]) is None


@pytest.mark.parametrize(
    "wrong", [["--held-out", "0"], ["--steps", "0"], ["--minutes", "0"], ["model.l_max=2"]]
)
def test_contradicting_options_are_usage_errors(script, workspace, wrong):
    with pytest.raises(SystemExit):
        script.parse([str(workspace.data), *wrong])
