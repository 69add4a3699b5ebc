"""scripts/augmentation: what turns with its input, augmentation, and going on where it stopped."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "benchmarks" / "augmentation.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("augmentation", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.BODY |= {"channels": 4, "radial_hidden": (8,)}
    return module


@pytest.fixture(scope="module")
def done(script, tmp_path_factory):
    """The folder that a short run of everything leaves, and its command line."""
    output = tmp_path_factory.mktemp("augmentation")
    command = ["--steps", "3", "--sizes", "6", "--seeds", "1", "--output", str(output)]
    return output, command, script.main(script.parse(command))


def test_networks_that_know_rotations_and_those_that_do_not(script, done):
    summary = done[2]
    assert list(summary) == list(script.VARIANTS)
    for variant, of_variant in summary.items():
        errors = {name: values[0] for name, values in of_variant[6].items()}
        if "free" in variant:
            assert errors["equivariance"] > 10  # meV/Å
        else:
            assert errors["equivariance"] < 0.1  # float32
            assert errors["error_turned"] == pytest.approx(errors["error"], abs=0.1)


def test_a_second_run_trains_what_is_missing(script, done, monkeypatch):
    output, command, _ = done
    before = json.loads((output / "augmentation.json").read_text())["runs"]
    trained = []
    monkeypatch.setattr(script, "train", lambda *arguments: trained.append(arguments))
    script.main(script.parse([*command[:-2], "--seeds", "1", "--output", str(output)]))
    assert trained == []
    script.main(script.parse(["--steps", "3", "--sizes", "6", "--seeds", "2", "--output", str(output)]))
    after = json.loads((output / "augmentation.json").read_text())["runs"]
    assert len(trained) == len(script.VARIANTS) == len(before) and after[: len(before)] == before
    assert (output / "augmentation.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(script.DataError, match="of 3 steps"):
        script.main(script.parse(["--steps", "4", "--sizes", "6", "--output", str(output)]))


def test_structures_are_turned_with_their_labels(script):
    """Edges and forces of each by one rotation."""
    frames = script.molecules(script.EXAMPLE / "test.xyz")[:2]
    data = script.GraphDataset(frames, ["C", "H", "O"], 4.0)
    graph = script.collate(data.graphs)
    turns = script.rotations(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert torch.linalg.det(turns).min() > 0.99 and not torch.allclose(turns[0], turns[1], atol=0.1)
    vectors = {}

    def model(edge_vec, edge_index, atom_types):
        vectors["seen"] = edge_vec
        return torch.zeros(len(atom_types), 3, dtype=torch.float64)

    _, labels = script.evaluate(model, graph, turns)
    for n in range(2):
        own, atoms = graph.structure[graph.edge_index[0]] == n, graph.structure == n
        before = script.edge_vectors(graph)[own], graph.labels.values["forces"].value[atoms]
        for a, b in zip(before, (vectors["seen"][own], labels[atoms]), strict=True):
            torch.testing.assert_close(a @ turns[n].T, b)


@pytest.mark.parametrize("options", [["--sizes", "4"], ["--seeds", "0"], ["--steps", "0"]])
def test_options_that_make_no_sense(script, options, capsys):
    with pytest.raises(SystemExit):
        script.parse(options)
    assert "must be" in capsys.readouterr().err
