"""Wrong inputs: one clear message on stderr, exit code 1, no traceback, no half-written result."""

import ase.io
import pytest


def fails(result, *expected: str) -> None:
    """The command failed, with one message that has all the expected words."""
    assert result.code == 1, result.out
    assert "Traceback" not in result.out + result.err
    message = result.err[result.err.index("Error: ") :]
    for text in expected:
        assert text in message
    assert len(message) < 1500


def broken_data(workspace, tmp_path, change) -> list:
    frames = ase.io.read(workspace.data, index=":")
    change(frames[3])
    ase.io.write(tmp_path / "broken.xyz", frames, format="extxyz")
    return [workspace.config, f"data.train={tmp_path / 'broken.xyz'}", f"run.directory={tmp_path / 'run'}"]


def test_misspelt_key(equipot, workspace, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(workspace.config.read_text().replace("batch_size", "batchsize"))
    fails(equipot("train", config), "config.yaml", "training", "batchsize", "batch_size")


def test_misspelt_override(equipot, workspace):
    fails(equipot("train", workspace.config, "training.epoch=5"), "training", "epoch", "epochs")


def test_missing_config(equipot):
    fails(equipot("train", "nowhere.yaml"), "nowhere.yaml")


def test_missing_data_file(equipot, workspace, tmp_path):
    result = equipot("train", workspace.config, "data.train=lost.xyz", f"run.directory={tmp_path / 'run'}")
    fails(result, "lost.xyz")
    assert not (tmp_path / "run").exists()


def test_nan_force(equipot, workspace, tmp_path):
    def change(atoms):
        atoms.calc.results["forces"][2, 1] = float("nan")

    result = equipot("train", *broken_data(workspace, tmp_path, change))
    fails(result, "broken.xyz", "frame 3", "forces", "atom 2")
    assert not (tmp_path / "run").exists()


def test_unknown_species_in_training(equipot, workspace, tmp_path):
    def change(atoms):
        atoms.symbols[0] = "Ag"

    result = equipot("train", *broken_data(workspace, tmp_path, change), "data.species=[Cu]")
    fails(result, "broken.xyz", "frame 3", "Ag")
    assert not (tmp_path / "run").exists()


def test_unknown_species_in_evaluation_and_md(equipot, workspace, tmp_path):
    frame = ase.io.read(workspace.test, index=0)
    frame.symbols[0] = "Ag"
    ase.io.write(tmp_path / "silver.xyz", frame, format="extxyz")
    result = equipot("evaluate", workspace.model, tmp_path / "silver.xyz", "--output", tmp_path / "out")
    fails(result, "silver.xyz", "frame 0", "Ag")
    assert not (tmp_path / "out").exists()
    fails(
        equipot("md", tmp_path / "silver.xyz", "--model", workspace.model, "--output", tmp_path / "md"), "Ag"
    )
    assert not (tmp_path / "md").exists()


def test_occupied_run_directory(equipot, workspace):
    before = (workspace.run / "checkpoints" / "best.ckpt").read_bytes()
    fails(equipot("train", workspace.config), str(workspace.run), "not empty")
    assert (workspace.run / "checkpoints" / "best.ckpt").read_bytes() == before


@pytest.mark.parametrize("command", ["info", "check", "evaluate", "md", "relax"])
def test_truncated_model(equipot, workspace, tmp_path, command):
    content = workspace.model.read_bytes()
    half = tmp_path / "half.pt"
    half.write_bytes(content[: len(content) // 2])
    arguments = {
        "info": ["info", half],
        "check": ["check", half],
        "evaluate": ["evaluate", half, workspace.test],
        "md": ["md", workspace.test, "--model", half, "--output", tmp_path / "md"],
        "relax": ["relax", workspace.test, "--model", half, "--output", tmp_path / "relax"],
    }[command]
    fails(equipot(*arguments), "half.pt", "damaged")


def test_truncated_checkpoint(equipot, workspace, tmp_path):
    content = (workspace.run / "checkpoints" / "best.ckpt").read_bytes()
    half = tmp_path / "half.ckpt"
    half.write_bytes(content[: len(content) // 2])
    fails(equipot("deploy", half, "--output", tmp_path / "model.pt"), "half.ckpt", "damaged")
    assert not (tmp_path / "model.pt").exists()


def test_missing_model(equipot, workspace):
    fails(equipot("evaluate", "nowhere.pt", workspace.test), "nowhere.pt")
    fails(equipot("deploy", "nowhere"), "nowhere")
    fails(equipot("info", "nowhere.pt"), "nowhere.pt")


def test_data_without_labels(equipot, workspace, tmp_path):
    frame = ase.io.read(workspace.test, index=0)
    frame.calc = None
    ase.io.write(tmp_path / "bare.xyz", frame, format="extxyz")
    fails(equipot("evaluate", workspace.run, tmp_path / "bare.xyz"), "--energy-key")
    # Predictions alone need no labels.
    result = equipot("evaluate", workspace.run, tmp_path / "bare.xyz", "--predictions", tmp_path / "p.xyz")
    assert result.code == 0 and "no labels" in result.out


def test_labels_in_a_field_are_not_those_of_a_model_without(equipot, workspace, tmp_path):
    frame = ase.io.read(workspace.test, index=0)
    frame.info["electric_field"] = [0.0, 0.0, 0.1]
    ase.io.write(tmp_path / "field.xyz", frame, format="extxyz")
    fails(equipot("evaluate", workspace.model, tmp_path / "field.xyz"), "electric field", "model.field: true")
    result = equipot("evaluate", workspace.model, tmp_path / "field.xyz", "--electric-field-key", "none")
    assert result.code == 0, result.err


def test_absent_label_name(equipot, workspace):
    result = equipot("evaluate", workspace.run, workspace.test, "--energy-key", "enrgy")
    fails(result, "enrgy", "energy")


def test_more_atoms_than_memory(equipot, workspace, tmp_path):
    atoms = ase.io.read(workspace.test)
    atoms.set_cell([20.0] * 3)
    atoms.pbc = True
    atoms.write(tmp_path / "periodic.xyz")
    output = ("--output", tmp_path / "md")
    arguments = ("md", tmp_path / "periodic.xyz", "--model", workspace.model, *output)
    fails(equipot(*arguments, "--supercell", 99999, 99999, 99999), "more memory than there is")
    assert not (tmp_path / "md").exists()


def test_output_that_is_a_file(equipot, workspace, tmp_path):
    """An OSError of the system is a message too."""
    (tmp_path / "taken").write_text("")
    fails(equipot("evaluate", workspace.run, workspace.test, "--output", tmp_path / "taken"), "taken")


def test_nothing_is_replaced_without_overwrite(equipot, workspace, tmp_path):
    """Of commands that write a file; those that write a folder have tests of their own."""
    run, mine = workspace.run, tmp_path / "errors.json"
    mine.write_text("mine")
    (tmp_path / "member_1.pt").write_text("mine")
    (tmp_path / "split.json").write_text("mine")
    (tmp_path / "few.xyz").write_bytes(workspace.test.read_bytes())
    fails(equipot("evaluate", run, workspace.test, "--output", tmp_path), "errors.json exists", "--overwrite")
    fails(equipot("evaluate", run, workspace.test, "--predictions", mine), "another with --predictions")
    fails(equipot("deploy", run, "--output", mine), "errors.json exists", "--overwrite")
    (tmp_path / "ensemble").mkdir()
    for member in ("member_0", "member_1"):
        (tmp_path / "ensemble" / member).symlink_to(run)
    fails(equipot("deploy", tmp_path / "ensemble", "--output", tmp_path), "member_1.pt exists", "--overwrite")
    fails(equipot("data", "split", workspace.test, "--output", tmp_path), "split.json exists")
    fails(equipot("report", run, "--output", mine), "errors.json' exists and is no page")
    fails(equipot("deploy", run, "--output", mine / "model.pt"), "errors.json is a file")
    # What is read is not replaced by any means.
    data = tmp_path / "few.xyz"
    fails(equipot("evaluate", run, data, "--predictions", data, "--overwrite"), "is a file that is read here")
    best = run / "checkpoints" / "best.ckpt"
    fails(equipot("deploy", run, "--output", best, "--overwrite"), "is a file that is read here")
    assert equipot("data", "convert", data, "--output", tmp_path / "a.equipot").code == 0
    convert = ("data", "convert", workspace.data, "--output", tmp_path / "a.equipot")
    fails(equipot(*convert), "is a store of other files", "--overwrite")
    assert equipot(*convert, "--overwrite").code == 0
    names = ("errors.json", "member_1.pt", "split.json")
    assert all((tmp_path / name).read_text() == "mine" for name in names)
    assert data.read_bytes() == workspace.test.read_bytes() and not (tmp_path / "member_0.pt").exists()
    result = equipot("evaluate", run, data, "--output", tmp_path, "--overwrite")
    assert result.code == 0 and "rmse" in mine.read_text()


def test_usage_errors_exit_with_2(equipot, workspace):
    assert equipot("train").code == 2
    assert equipot("evaluate", workspace.run).code == 2
    assert equipot("no-such-command").code == 2
    too_few = equipot("evaluate", workspace.run, workspace.test, "--max-edges", "0")
    assert too_few.code == 2 and "--max-edges" in too_few.err
    both = equipot("train", workspace.config, "--find-learning-rate", "--ensemble", "2")
    assert both.code == 2 and "--find-learning-rate" in both.err
    both = equipot("train", workspace.config, "--resume", "auto", "--overwrite")
    assert both.code == 2 and "--overwrite replaces one" in both.err


def test_debug_shows_the_traceback(equipot):
    for arguments in (("--debug", "info", "nowhere.pt"), ("info", "nowhere.pt", "--debug")):
        with pytest.raises(Exception, match=r"nowhere\.pt"):
            equipot(*arguments)
