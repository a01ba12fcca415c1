"""Packages that only some formats need."""

from __future__ import annotations

import importlib
from typing import Any

from zoo.common.errors import InputError


def extra(module: str, extra_name: str, where: str) -> Any:
    """Import `module`. Raises InputError that names `where` it is needed and how to install it."""
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{where} needs the package {package}, which is not installed. "
            f"Install it with `pip install 'segmentation-zoo[{extra_name}]'`."
        ) from error
