"""zoo demo refuses what it cannot serve, at once and in one message."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from zoo.cli.main import run
from zoo.demo.page import wrong_file


def test_a_port_that_is_taken(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["demo", str(model), "--port", str(port)]) == 2
    assert capsys.readouterr().err == (
        f"zoo: Cannot serve on 127.0.0.1:{port}: Address already in use. Choose another --port, "
        "or another --host.\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--port", "0"], "--port must be between 1 and 65535, not 0."),
        (
            ["--host", "192.0.2.1"],
            "Cannot serve on 192.0.2.1:7860: Cannot assign requested address",
        ),
        (["--max-megapixels", "0"], "--max-megapixels must be a number above 0, not 0.0."),
        (["--max-upload-mb", "nan"], "--max-upload-mb must be a number above 0, not nan."),
        (["--queue", "0"], "--queue must be a number above 0, not 0."),
        (["--concurrency", "-1"], "--concurrency must be a number above 0, not -1."),
        (["--precision", "fp8"], "fp8"),
        pytest.param(["--tta", "turn"], "turn", marks=pytest.mark.long),
    ],
)
def test_options(
    model: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert run(["demo", str(model), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.long
def test_what_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "unet-resnet18"]) == 2
    assert "names an architecture" in capsys.readouterr().err
    assert run(["demo", str(tmp_path)]) == 2
    assert "is not a model folder" in capsys.readouterr().err


def test_without_gradio(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run(["demo", str(model)]) == 2
    assert capsys.readouterr().err == (
        "zoo: zoo demo needs the package gradio, which is not installed. Install it with "
        "`pip install 'segmentation-zoo[demo]'`.\n"
    )


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"data": [{"path": "a/photo.png", "url": "http://127.0.0.1/a"}]}', ""),
        (b'{"data": [{"path": "https://a/b"}]}', "Addresses are not fetched."),
        (b'{"data": [[{"x": {"path": "http://a"}}]]}', "Addresses are not fetched."),
        (b'{"data": [{"path": "a/../../private.png"}]}', "There is no such upload."),
        (b'{"data": [{"path": "a/link.png"}]}', "There is no such upload."),
        (b'{"data": [{"path": "a/gone.png"}]}', "There is no such upload."),
        (b'{"data": [{"path": "a/\\u0000"}]}', "There is no such upload."),
        (b'{"data": [{"path": 0}]}', "There is no such upload."),
        (b'{"data": [{"path": null}]}', ""),
        (b"[" * 100_000, ""),
        (b"\xff", ""),
    ],
)
def test_files_in_requests(
    body: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploads = tmp_path / "uploads"
    (uploads / "a").mkdir(parents=True)
    for file in (uploads / "a" / "photo.png", tmp_path / "private.png"):
        file.write_bytes(b"")
    (uploads / "a" / "link.png").symlink_to(tmp_path / "private.png")
    monkeypatch.chdir(uploads)
    said = wrong_file(body, uploads)
    assert said.startswith(expected)
    assert bool(said) == bool(expected)
