"""What is said while something takes long and stderr is no terminal."""

from __future__ import annotations

import time

import pytest

from zoo.common import console


def test_a_line_a_minute_where_there_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.2)
    with console.progress_bar() as bar:
        task = bar.add_task("epoch 2", total=8, completed=4, initial=4)
        bar.advance(task)
        deadline = time.monotonic() + 10
        said = ""
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
            said = capsys.readouterr().err
    assert said.startswith("epoch 2: 5 of 8 after 0:00:00, about 0:00:0")
    assert said.endswith(" left\n")
    time.sleep(0.3)
    assert capsys.readouterr().err == ""


def test_no_line_where_something_else_was_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.5)
    for item in console.track(range(10), "reading", 10):
        time.sleep(0.08)
        console.info(str(item))
    assert capsys.readouterr().err.split() == [str(item) for item in range(10)]


def test_lines_count_what_is_tracked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "LINE_SECONDS", 0.2)
    for item in console.track(range(4), "reading", 4):
        time.sleep(0.01 if item < 3 else 0.5)
    assert capsys.readouterr().err.startswith("reading: 3 of 4 after 0:00:00, about 0:00:00 left")


def test_lines_of_tasks_without_an_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Short tasks in a row count together."""
    monkeypatch.setattr(console, "LINE_SECONDS", 0.3)
    said = []
    for number in range(8):
        with console.progress_bar() as bar:
            bar.add_task(f"file {number}", total=None)
            time.sleep(0.1)
        said += capsys.readouterr().err.splitlines()
    assert 1 <= len(said) <= 3
    assert all(line.endswith(": 0 after 0:00:00") for line in said)
