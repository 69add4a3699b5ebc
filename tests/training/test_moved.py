"""A project that was moved to another folder goes on; one whose data are others does not."""

import shutil

import pytest

from equipot.config import load_config
from equipot.errors import DataError, TrainingError
from equipot.training.run import train

YAML = """
data: {train: data/clusters.xyz, validation: 4}
model: {type: nequip, l_max: 1, layers: 1, channels: 2, num_bessel: 3, radial_hidden: [4], cutoff: 4.0}
training: {epochs: 1, batch_size: 3}
run: {directory: %s/run, device: cpu}
"""


@pytest.fixture
def moved(structures, tmp_path, no_plot):
    """Folder of a project that was trained for an epoch in another place."""
    before, now = tmp_path / "before", tmp_path / "elsewhere" / "now"
    (before / "data").mkdir(parents=True)
    shutil.copy(structures, before / "data" / "clusters.xyz")
    (before / "a.yaml").write_text(YAML % before)
    train(load_config(before / "a.yaml"))
    now.parent.mkdir()
    before.rename(now)
    return now


def test_goes_on_in_its_new_place(moved):
    result = train(load_config(moved / "a.yaml", ["training.epochs=2"]), resume=moved / "run")
    assert result.stopped == "finished"
    assert str(moved / "data" / "clusters.xyz") in (moved / "run" / "split.json").read_text()


def test_other_content_under_the_same_name_is_refused(moved):
    file = moved / "data" / "clusters.xyz"
    file.write_text(file.read_text().replace("Cu ", "Ag ", 1))
    config = load_config(moved / "a.yaml", ["training.epochs=2"])
    with pytest.raises(
        DataError, match=r"none of the files that section data names now has its content: .*clusters"
    ):
        train(config, resume=moved / "run")


def test_another_name_is_refused(moved):
    (moved / "data" / "clusters.xyz").rename(moved / "data" / "b.xyz")
    config = load_config(moved / "a.yaml", [f"data.train={moved}/data/b.xyz"])
    with pytest.raises(TrainingError, match=r"data\.train\[0\]: clusters\.xyz, now b\.xyz"):
        train(config, resume=moved / "run")
