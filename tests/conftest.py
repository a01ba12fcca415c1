"""What every test sees: a Hub on the loopback address, and the real data where it exists.

The Hub's client reads its endpoint once, when it is first imported, so the environment is set here
before any test module is loaded. With pytest-xdist each worker has its own port and HF_HOME.
Temporary files, also those of processes that a test starts, lie in one folder that is deleted at
the end, or by the next run if this one is killed; `--basetemp=FOLDER` keeps those of failed tests.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zoo.common.files import scratch_folder

TESTS = Path(__file__).parent
SHARED = TESTS.parent.parent / "shared"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _set_environment() -> None:
    if "huggingface_hub.constants" in sys.modules:
        raise RuntimeError(
            "huggingface_hub was imported before tests/conftest.py; see its docstring"
        )
    if "PYTEST_XDIST_WORKER" not in os.environ:  # a worker is in the folder of its controller
        stack = contextlib.ExitStack()
        atexit.register(stack.close)
        scratch = scratch_folder(Path(tempfile.gettempdir()), "zoo-tests-")
        tempfile.tempdir = os.environ["TMPDIR"] = str(stack.enter_context(scratch))
    port = _free_port()
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
        os.environ.pop(name, None)
    os.environ |= {
        "ZOO_TEST_HUB_PORT": str(port),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": tempfile.mkdtemp(prefix="hf-"),
        "HF_TOKEN": "fake",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        # Processes that a test starts find tests/helpers too; pyproject.toml says so for pytest.
        "PYTHONPATH": os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }


_set_environment()

if TYPE_CHECKING:
    from helpers.hub_server import LoopbackHub


@pytest.fixture(scope="session")
def hub_server() -> Iterator[LoopbackHub]:
    """The loopback Hub at HF_ENDPOINT, started when the first test asks for it."""
    from helpers.hub_server import LoopbackHub

    hub = LoopbackHub(port=int(os.environ["ZOO_TEST_HUB_PORT"]))
    yield hub
    hub.stop()


@pytest.fixture
def loopback_hub(
    hub_server: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LoopbackHub]:
    """An empty loopback Hub and an empty cache, in this process and in those it starts."""
    import huggingface_hub

    cache = str(tmp_path / "hf_cache")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)
    hub_server.reset()
    yield hub_server
    hub_server.reset()
    huggingface_hub.close_session()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the project; skips the test where it is absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """The folder with a real pretrained encoder; skips the test where it is absent."""
    return _shared("weights")


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not there")
    return folder
