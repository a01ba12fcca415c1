"""A Hugging Face Hub on the loopback address, for tests over real HTTP."""

from hub_server.hub import LoopbackHub
from hub_server.state import Fault, Repo, Request, Response

__all__ = ["Fault", "LoopbackHub", "Repo", "Request", "Response"]
