"""What was pushed runs: the app.py of a Space, and the handler.py of an endpoint."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.demo_server import demo_server, free_port
from helpers.hub_server import LoopbackHub
from PIL import Image

import zoo
from zoo.inference.predictor import Predictor

pytestmark = pytest.mark.long
gradio_client = pytest.importorskip("gradio_client")


def write(hub: LoopbackHub, repo: str, folder: Path) -> Path:
    """The repository as the Hub would put it on the machine that runs it."""
    folder.mkdir()
    for name, content in hub.repos[repo].commits[hub.repos[repo].refs["main"]].items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    small = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    Image.fromarray(small).resize((80, 60)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_space_serves_the_model(
    loopback_hub: LoopbackHub, model: Path, photo: Path, tmp_path: Path
) -> None:
    zoo.push(model, "org/tiny", space=True)
    folder, port = write(loopback_hub, "spaces/org/tiny", tmp_path / "space"), free_port()
    with demo_server(["app.py"], folder, port, GRADIO_SERVER_PORT=str(port)) as server:
        client = gradio_client.Client(server.url, verbose=False, analytics_enabled=False)
        mask, _, statistics = client.predict(
            gradio_client.handle_file(str(photo)), api_name="/predict"
        )
    assert (np.asarray(Image.open(mask)) == Predictor(model)(photo).mask).all()
    assert statistics["model"] == "unet-test_resnet"
    assert "FOREIGN" not in server.log


SCRIPT = """import importlib.util, json, sys
from PIL import Image
spec = importlib.util.spec_from_file_location("handler", sys.argv[1] + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
endpoint = module.EndpointHandler(sys.argv[1])
import base64
content = open(sys.argv[2], "rb").read()
text = base64.b64encode(content).decode()
with Image.open(sys.argv[2]) as image:
    given = [text, "data:image/png;base64," + text, content, image, image.convert("RGBA")]
    answers = [endpoint({"inputs": value}) for value in given]
assert all(answer == answers[0] for answer in answers), answers
refused = []
for wrong in ({"inputs": "no base64"}, {"inputs": base64.b64encode(b"x").decode()}, {}, []):
    try:
        endpoint(wrong)
    except ValueError as error:
        refused.append(str(error))
print(json.dumps([answers[0], refused]))
"""


def test_an_endpoint_answers(
    loopback_hub: LoopbackHub, model: Path, photo: Path, tmp_path: Path
) -> None:
    zoo.push(model, "org/tiny", handler=True)
    folder = write(loopback_hub, "org/tiny", tmp_path / "repository")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(photo)], capture_output=True, text=True,
        check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]]
    found, refused = json.loads(done.stdout)
    expected = Predictor(model)(photo, confidence=True)
    assert expected.confidence is not None
    classes = zoo.create(model).spec.classes
    counts = np.bincount(expected.mask.ravel(), minlength=3)
    order = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
    assert [entry["label"] for entry in found] == [classes[index] for index in order]
    for entry, index in zip(found, order, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(base64.b64decode(entry["mask"]))))
        assert (mask == 255 * (expected.mask == index)).all()
        mean = expected.confidence[expected.mask == index].mean()
        assert entry["score"] == pytest.approx(float(mean), abs=1e-6)
    assert refused[0] == "`inputs` is text, but not base64."
    assert refused[1].startswith("image is not an image in a known format")
    assert refused[2] == refused[3]
    assert refused[2].startswith("`inputs` should be an image: base64 text, bytes or an image of")
