"""A Hugging Face Hub on the loopback address, for tests over real HTTP."""

from helpers.hub_server.hub import LoopbackHub
from helpers.hub_server.state import Fault, Repo, Request, Response

__all__ = ["Fault", "LoopbackHub", "Repo", "Request", "Response"]
