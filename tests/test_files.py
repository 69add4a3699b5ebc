"""Files that are either complete or absent: what their errors name."""

import errno
import os

import pytest

from equipot.files import atomic_write


@pytest.mark.parametrize("where", ["mkstemp", "write", "replace"])
def test_errors_name_the_final_path(tmp_path, monkeypatch, where):
    target = tmp_path / "model.pt"

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / ".model-x1y2.pt"))

    if where == "mkstemp":
        monkeypatch.setattr("tempfile.mkstemp", full)
    elif where == "replace":
        monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError) as caught, atomic_write(target) as temporary:
        if where == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
    assert caught.value.strerror == f"Cannot write {target}: No space left on device"
    assert caught.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_type_of_the_error_stays(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError, match="Cannot write"), atomic_write(tmp_path / "file" / "a.txt"):
        pass


def test_errors_of_other_files_pass(tmp_path):
    with pytest.raises(FileNotFoundError) as caught, atomic_write(tmp_path / "a.txt"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
