"""One page of a tiny model for all tests, and a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.demo_server import Server, demo_server, free_port
from helpers.hub_models import tiny, write_tiny
from helpers.scripts import load_script

CLASSES = ["road", "<b>car</b>", "sky"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = tiny(classes=CLASSES)
    with torch.no_grad():  # so that no class covers everything
        network.net.segmentation_head[0].bias.copy_(torch.tensor([-0.023, -0.379, -0.092]))
    return write_tiny(tmp_path_factory.mktemp("demo") / "model", network)


@pytest.fixture(scope="session")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    options = ["--max-megapixels", "0.2", "--max-upload-mb", "1", "--precision", "fp32"]
    command = ["zoo", "demo", str(model), "--port", str(port), *options]
    with demo_server(command, folder, port) as found:
        yield found
    assert found.process.returncode == 0
    assert "FOREIGN" not in found.log
    assert "Traceback" not in found.log
    assert [path.name for path in folder.iterdir()] == ["server.log"]


@pytest.fixture(scope="session")
def chromium() -> Any:
    module = load_script("chromium")
    if module.find() is None:
        pytest.skip("NO CHROMIUM: the page of the demo is NOT tested; apt-get install chromium")
    return module
