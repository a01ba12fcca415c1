"""Bounds on what the Hub's client does by itself while something is written."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session

from zoo.common.errors import RunError
from zoo.remote.client import AGAIN, Task, host, refused

TRIES = 2


@contextlib.contextmanager
def bounded(task: Task, timeout: float) -> Iterator[None]:
    """Within the block no request of the client waits longer than `timeout` seconds in silence.

    The client repeats failed requests for minutes; here it may do so once, and not at all after
    silence or where the Hub limits the rate. A token goes to the Hub alone, whatever address an
    answer names. Large files go over HTTP too, since neither holds of Xet. Raises RunError from
    within the client where a bound is reached.
    """
    session: Any = get_session()
    before, xet_was_off = (session.timeout, session.event_hooks), constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    guard = _Guard(task, timeout)
    session.timeout = timeout
    session.event_hooks = {
        "request": [*before[1]["request"], guard.asked],
        "response": [*before[1]["response"], guard.answered],
    }
    try:
        yield
    finally:
        session.timeout, session.event_hooks = before
        constants.HF_HUB_DISABLE_XET = xet_was_off


class _Guard:
    """Counts the tries of each request and the seconds since the first."""

    def __init__(self, task: Task, timeout: float):
        self._task = task
        self._timeout = timeout
        self._tries: dict[tuple[str, str], list[float]] = {}

    def asked(self, request: Any) -> None:
        """Called before a request is sent."""
        url = str(request.url)
        if _origin(url) != _origin(constants.ENDPOINT):
            request.headers.pop("authorization", None)
        tries = self._tries.setdefault((request.method, url), [])
        if tries and (time.monotonic() - tries[0] >= self._timeout or len(tries) >= TRIES):
            raise RunError(self._task.failure(f"{host()} did not answer", AGAIN))
        tries.append(time.monotonic())

    def answered(self, response: Any) -> None:
        """Called when an answer's head has come."""
        key = (response.request.method, str(response.request.url))
        status = response.status_code
        if status < 500 and status != 429:
            self._tries.pop(key, None)
        elif status == 429 or len(self._tries.get(key, [])) >= TRIES:
            raise refused(self._task, status, response.headers.get("Retry-After", ""))


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
