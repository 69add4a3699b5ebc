"""From a checkpoint, as training writes it, to a deployed file."""

import zipfile

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule

from equipot.config import config_from_dict
from equipot.data.digests import file_digest
from equipot.data.splits import Split
from equipot.data.statistics import Statistics
from equipot.deploy.capsule import Capsule
from equipot.deploy.checkpoint import CHECKPOINT_FORMAT, load_checkpoint
from equipot.deploy.export import deploy
from equipot.deploy.load import load_deployed
from equipot.deploy.structure import evaluate
from equipot.errors import DataError, ModelFileError, UnknownSpeciesError
from equipot.models.build import build_potential

MODELS = {
    "nequip": {"type": "nequip", "layers": 2, "channels": 4, "l_max": 1, "radial_hidden": [8], "cutoff": 4.0},
    "allegro": {"type": "allegro", "layers": 1, "scalar_channels": 8, "channels": 4, "l_max": 1},
}
STATISTICS = Statistics(
    species=["H", "C", "O"],
    atomic_energies=[-13.0, -1030.0, -2040.0],
    atomic_energies_source="given",
    energy_residual_rms=0.1,
    avg_num_neighbors=7.5,
    force_rms=1.5,
    num_frames=4,
    num_atoms=36,
    atoms_per_species=[24, 8, 4],
    num_labels={"energy": 4, "forces": 36},
)


@pytest.fixture
def data_file(tmp_path):
    """Four frames of rattled ethanol."""
    frames = []
    for seed in range(4):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    path = tmp_path / "ethanol.xyz"
    ase.io.write(path, frames)
    return path


def config_for(data_file, model):
    return config_from_dict(
        {"data": {"train": [str(data_file)]}, "model": model, "run": {"directory": str(data_file.parent)}}
    )


def write_checkpoint(data_file, model=None, **changes):
    """A run directory with a checkpoint whose EMA weights differ from the last ones; its path."""
    config = config_for(data_file, model or MODELS["nequip"])
    torch.manual_seed(0)
    last, average = (
        build_potential(config.model, ["H", "C", "O"], 7.5, STATISTICS.atomic_energies, 1.5) for _ in range(2)
    )
    extra = {
        "format": CHECKPOINT_FORMAT,
        "config": config.to_dict(),
        "statistics": STATISTICS.to_dict(),
        "species": ["H", "C", "O"],
        "validation": {"forces_mae": 0.02},
        "ema": average.state_dict(),
        "equipot_version": "0.1.0",
        "torch_version": "2.13.0",
    } | changes
    path = data_file.parent / "run" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    state = {f"potential.{name}": value for name, value in last.state_dict().items()}
    torch.save({"state_dict": state, "equipot": extra}, path)
    return path


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deployed_model_is_the_averaged_one(data_file, tmp_path, model, dtype):
    path = write_checkpoint(data_file, MODELS[model] | {"dtype": dtype})
    metadata = deploy(path, tmp_path / "model.pt")
    deployed = load_deployed(tmp_path / "model.pt", "cpu")
    assert (metadata.model_type, metadata.dtype, metadata.weights) == (model, dtype, "ema")
    assert metadata.atomic_energies == (-13.0, -1030.0, -2040.0)
    assert metadata.validation == {"forces_mae": 0.02}
    eager, last = load_checkpoint(path), load_checkpoint(path, weights="last")
    for reference in Capsule.from_json(metadata.capsule).references:
        found = evaluate(deployed, reference.structure)
        expected = evaluate(eager.potential, reference.structure)
        # Scripted and eager autograd may add gradients in another order: rounding, times a few operations.
        np.testing.assert_allclose(found.forces, expected.forces, atol=1e-4 if dtype == "float32" else 1e-11)
        assert not np.allclose(found.forces, evaluate(last.potential, reference.structure).forces, atol=1e-2)


def test_capsule_takes_validation_frames(data_file, tmp_path):
    path = write_checkpoint(data_file)
    train, validation = [(str(data_file), 0), (str(data_file), 3)], [(str(data_file), 1), (str(data_file), 2)]
    Split(train=tuple(train), validation=tuple(validation)).save(path.parents[1] / "split.json")
    capsule = Capsule.from_json(deploy(path, tmp_path / "model.pt").capsule)
    names = {reference.structure.name for reference in capsule.references}
    assert {"ethanol.xyz frame 1", "ethanol.xyz frame 2"} < names
    assert not {"ethanol.xyz frame 0", "ethanol.xyz frame 3"} & names
    frame = next(r.structure for r in capsule.references if r.structure.name == "ethanol.xyz frame 2")
    np.testing.assert_allclose(frame.positions, ase.io.read(data_file, 2).positions, atol=1e-7)
    assert "validation frames" in capsule.source


def test_capsule_without_the_data(data_file, tmp_path, caplog):
    path = write_checkpoint(data_file)
    data_file.unlink()
    capsule = Capsule.from_json(deploy(path, tmp_path / "model.pt").capsule)
    assert "synthetic only" in capsule.source
    assert len(capsule.references) == 2
    assert "cannot be read" in caplog.text


def test_capsule_takes_frames_from_where_they_are_now(data_file, tmp_path):
    path = write_checkpoint(data_file)
    held = {"train": ((str(data_file), 0),), "validation": ((str(data_file), 2),)}
    Split(**held, file_digests={str(data_file): file_digest(data_file)}).save(path.parents[1] / "split.json")
    moved = data_file.rename(tmp_path / "moved.xyz")
    settings = tmp_path / "new.yaml"
    settings.write_text(f"data: {{train: {moved}, validation: 1}}\nmodel: {{type: nequip}}\n")
    capsule = Capsule.from_json(deploy(path, tmp_path / "model.pt", config=settings).capsule)
    assert "moved.xyz frame 2" in {reference.structure.name for reference in capsule.references}
    moved.write_text(moved.read_text().replace("O ", "O  ", 1))
    with pytest.raises(
        DataError, match=r"new.yaml does not say where .* none of the files .* has its content"
    ):
        deploy(path, tmp_path / "other.pt", config=settings)
    assert not (tmp_path / "other.pt").exists()


def test_given_structures(data_file, tmp_path):
    path = write_checkpoint(data_file)
    metadata = deploy(path, tmp_path / "model.pt", structures=[molecule("CH4")])
    structures = [r.structure for r in Capsule.from_json(metadata.capsule).references]
    assert [s.num_atoms for s in structures] == [5, 6, 2]
    with pytest.raises(UnknownSpeciesError, match="N"):
        deploy(path, tmp_path / "other.pt", structures=[molecule("NH3")])
    assert not (tmp_path / "other.pt").exists()


def test_no_average_is_said(data_file, tmp_path, caplog):
    path = write_checkpoint(data_file, ema=None)
    assert deploy(path, tmp_path / "model.pt").weights == "last"
    assert "no averaged weights" in caplog.text


def test_message_passing_range(data_file, tmp_path):
    path = write_checkpoint(data_file)
    metadata = deploy(path, tmp_path / "model.pt")
    assert (metadata.cutoff, metadata.interaction_range) == (4.0, 8.0)


def test_zbl_survives(data_file, tmp_path):
    path = write_checkpoint(data_file, MODELS["nequip"] | {"zbl": True})
    deploy(path, tmp_path / "model.pt")
    assert all(deviation.passed for deviation in load_deployed(tmp_path / "model.pt", "cpu").check_capsule())


def refuse(path, message):
    with pytest.raises(ModelFileError, match=message):
        load_checkpoint(path)


def test_unusable_checkpoints(data_file, tmp_path):
    path = write_checkpoint(data_file)
    refuse(tmp_path / "none.ckpt", "no such file")
    cut = tmp_path / "cut.ckpt"
    cut.write_bytes(path.read_bytes()[:5000])
    refuse(cut, "truncated or damaged")
    late = tmp_path / "late.ckpt"
    late.write_bytes(path.read_bytes()[:-30])
    refuse(late, "truncated or damaged")
    text = tmp_path / "text.ckpt"
    text.write_text("hello")
    refuse(text, "not a checkpoint")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"weights": torch.zeros(2)}, foreign)
    refuse(foreign, "not a checkpoint written by 'equipot train'")
    deploy(path, tmp_path / "model.pt")
    refuse(tmp_path / "model.pt", "a deployed model, where a training checkpoint is expected")


def test_flipped_bits(data_file, tmp_path):
    """torch.load reads such a file: it does not look at checksums."""
    path = write_checkpoint(data_file)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        tensors = [name for name in archive.namelist() if "/data/" in name]
        start = content.index(max(map(archive.read, tensors), key=len))
    content[start + 5] ^= 0x10
    flipped = tmp_path / "flipped.ckpt"
    flipped.write_bytes(content)
    torch.load(flipped, weights_only=True)
    refuse(flipped, "wrong checksum")
    content[start + 5] ^= 0x10
    content[30] ^= 0x01  # the name in the first entry's own header
    flipped.write_bytes(content)
    refuse(flipped, "damaged")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": CHECKPOINT_FORMAT + 1}, "Upgrade equipot"),
        ({"statistics": {"species": []}}, "cannot be read"),
        ({"config": {"model": {"type": "nequip"}}}, "cannot be read"),
        ({"ema": {"unknown": torch.zeros(1)}}, "weights do not fit"),
    ],
)
def test_checkpoints_that_do_not_fit(data_file, changes, message):
    refuse(write_checkpoint(data_file, **changes), message)


def test_missing_description(data_file):
    path = write_checkpoint(data_file)
    content = torch.load(path, weights_only=True)
    del content["equipot"]["species"]
    torch.save(content, path)
    refuse(path, "cannot be read.*species")
