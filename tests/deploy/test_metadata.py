"""Metadata as flat strings, and every file that is no deployed model."""

import io
import zipfile

import pytest
import torch
from rich.console import Console
from standin import rewritten

from equipot.deploy.checkpoint import find_checkpoint
from equipot.deploy.info import info
from equipot.deploy.load import DeployedModel, load_deployed
from equipot.deploy.metadata import FORMAT_VERSION, Metadata, read_metadata
from equipot.devices import resolve_device
from equipot.errors import DeviceError, ModelFileError, UnknownSpeciesError


def test_strings_round_trip(model_file):
    metadata = read_metadata(model_file)
    assert metadata.species == ("H", "C", "O")
    assert (metadata.cutoff, metadata.interaction_range, metadata.num_exchanges) == (4.0, 4.0, 0)
    assert metadata.atomic_energies == (-10.0, -20.0, -30.0)
    assert metadata.validation == {"forces_mae": 0.01}
    assert metadata.torch_version == torch.__version__
    strings = metadata.to_strings()
    assert all(isinstance(value, str) for value in strings.values())
    assert Metadata.from_strings(strings, model_file) == metadata


def test_info_names_what_matters(model_file):
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(info(model_file))
    text = console.export_text()
    for part in ("H C O", "4 Å", "float64", "strictly local", "-20.000000", "forces_mae", "type: standin"):
        assert part in text


def test_info_loses_nothing_in_a_narrow_terminal(model_file, tmp_path):
    names = [f"frames_{i:03d}.xyz" for i in range(12)]
    yaml = f"data: {{train: [{', '.join(names)}]}}"
    path = rewritten(
        model_file,
        tmp_path / "m.pt",
        lambda name, data: yaml.encode() if name.endswith("extra/config") else data,
    )
    console = Console(width=50, record=True, file=io.StringIO())
    console.print(info(path))
    text = "".join(console.export_text().split())
    assert all(name in text for name in names)


def test_info_prints_the_shortest_distances(model_file, tmp_path):
    """Of a file that has them; one from before has none, and says nothing."""
    assert read_metadata(model_file).shortest_distances == {}
    distances = b'{"H-O": 0.95, "C-H": 1.0625}'
    path = rewritten(
        model_file,
        tmp_path / "m.pt",
        lambda name, data: distances if name.endswith("extra/shortest_distances") else data,
    )
    assert read_metadata(path).shortest_distances == {"H-O": 0.95, "C-H": 1.0625}
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(info(path))
    lines = [line.split() for line in console.export_text().splitlines()]
    rows = lines[lines.index(["Shortest", "distances", "in", "the", "training", "set", "(Å)"]) + 1 :]
    assert rows[:4] == [["H", "C", "O"], ["H", "-"], ["C", "1.062", "-"], ["O", "0.950", "-", "-"]]
    older = rewritten(model_file, tmp_path / "old.pt", lambda n, d: None if n.endswith("distances") else d)
    assert read_metadata(older).shortest_distances == {}
    console.print(info(older))
    assert "Shortest" not in console.export_text()


def test_missing_file(tmp_path):
    with pytest.raises(ModelFileError, match="no such file"):
        load_deployed(tmp_path / "no.pt")


def test_folder(tmp_path):
    with pytest.raises(ModelFileError, match=r"found a folder\. Of a run, 'equipot deploy .*' makes one"):
        load_deployed(tmp_path)
    (tmp_path / "member_0").mkdir()
    with pytest.raises(ModelFileError, match=r"an ensemble, of which 'equipot deploy .*/member_0' makes one"):
        load_deployed(tmp_path)
    with pytest.raises(ModelFileError, match=r"is an ensemble: name one of its members, such as .*member_0"):
        find_checkpoint(tmp_path)
    (tmp_path / "member_0.pt").touch()
    with pytest.raises(ModelFileError, match=r"name one of its members, such as .*/member_0\.pt\."):
        load_deployed(tmp_path)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 0.99])
def test_truncated_file(model_file, tmp_path, fraction):
    content = model_file.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        load_deployed(path)


def test_truncated_behind_an_archive_inside(tmp_path):
    """A model holds a checkpoint; what is left must not pass for one."""
    inner, path = tmp_path / "inner", tmp_path / "cut.pt"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/a", b"x")
        archive.writestr("model/extra/training_state", inner.read_bytes())
        end = archive.fp.tell()
        archive.writestr("model/b", b"x")
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(ModelFileError, match="truncated or damaged"):
        load_deployed(path)


def test_flipped_byte(model_file, tmp_path):
    content = bytearray(model_file.read_bytes())
    content[content.index(b"atom_energies") + 3] ^= 1  # inside the capsule or the code
    path = tmp_path / "flipped.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="damaged"):
        load_deployed(path)


def test_text_file(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_text("model: {type: nequip}\n")
    with pytest.raises(ModelFileError, match="not a model file"):
        load_deployed(path)


def test_checkpoint_instead_of_model(tmp_path):
    path = tmp_path / "best.ckpt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(ModelFileError, match="checkpoint, not a deployed model"):
        load_deployed(path)


def test_foreign_torchscript(model_file, tmp_path):
    path = rewritten(model_file, tmp_path / "m.pt", lambda name, data: None if "/extra/" in name else data)
    with pytest.raises(ModelFileError, match="not made by 'equipot deploy'"):
        load_deployed(path)


def test_newer_format(model_file, tmp_path):
    newer = str(FORMAT_VERSION + 1).encode()

    def change(name, data):
        return newer if name.endswith("extra/format_version") else data

    path = rewritten(model_file, tmp_path / "m.pt", change)
    with pytest.raises(ModelFileError, match=f"format {FORMAT_VERSION + 1}.*Upgrade equipot"):
        load_deployed(path)


@pytest.mark.parametrize("key", ["cutoff", "capsule"])
def test_missing_key(model_file, tmp_path, key):
    path = rewritten(
        model_file, tmp_path / "m.pt", lambda name, data: None if name.endswith(f"extra/{key}") else data
    )
    with pytest.raises(ModelFileError, match=f"lacks {key}"):
        load_deployed(path)


def test_damaged_code(model_file, tmp_path):
    path = rewritten(
        model_file, tmp_path / "m.pt", lambda name, data: b"nonsense" if name.endswith(".py") else data
    )
    with pytest.raises(ModelFileError, match="cannot load this model"):
        load_deployed(path)


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:99"])
def test_device_that_does_not_exist(model_file, device):
    with pytest.raises(DeviceError, match=device):
        load_deployed(model_file, device)


def test_auto_device_exists():
    assert torch.zeros(1, device=resolve_device("auto")).item() == 0.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_call_is_spent_on_measuring_and_compiling(model_file, device):
    """TorchScript's profiling executor stays off on every device: shapes change at every step."""
    model, seen = load_deployed(model_file, "cpu"), []

    def module(*inputs):
        seen.append(torch._C._get_graph_executor_optimize())

    before = torch._C._get_graph_executor_optimize()
    stub = DeployedModel(model.path, model.metadata, torch.device(device), b"")
    vars(stub)["module"] = module
    stub(*[torch.zeros(1)] * 4)
    assert seen == [False] and torch._C._get_graph_executor_optimize() == before


def test_atom_types(model_file):
    model = load_deployed(model_file, "cpu")
    assert model.atom_types([8, 1, 6, 1]).tolist() == [2, 0, 1, 0]
    with pytest.raises(UnknownSpeciesError, match=r"model.pt.* contains N, Au, but .* H, C, O"):
        model.atom_types([1, 79, 7])
