"""The progress bar of long reads."""

import pytest

from equipot.data.progress import track


@pytest.fixture
def terminal(monkeypatch):
    """Make rich treat standard error as a terminal (older and newer variable)."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")


def test_items_pass_through_and_short_work_shows_nothing(terminal, capsys):
    assert list(track(range(5), "reading", 5)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_long_work_shows_a_bar(terminal, capsys):
    assert list(track(range(5), "reading", 5, delay=0.0)) == [0, 1, 2, 3, 4]
    output = capsys.readouterr()
    assert output.out == ""
    assert "reading" in output.err
    assert "5/5" in output.err


def test_no_bar_without_a_terminal(monkeypatch, capsys):
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    list(track(range(5), "reading", 5, delay=0.0))
    assert capsys.readouterr() == ("", "")


def test_bar_ends_when_the_work_fails(terminal, capsys):
    def failing():
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(track(failing(), "reading", 2, delay=0.0))
    assert capsys.readouterr().err.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # cursor shown, bar erased
