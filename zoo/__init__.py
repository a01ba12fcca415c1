"""zoo: semantic segmentation models on timm backbones, by name.

Names are loaded on first use, so that `import zoo` imports neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.api import (
        create,
        evaluate,
        find_lr,
        finetune,
        list_models,
        load_dataset,
        predict,
        pull,
        push,
        show,
    )
    from zoo.errors import InputError, RunError, ZooError

__version__ = "0.1.0"

_HOMES = {
    "create": "zoo.api",
    "evaluate": "zoo.api",
    "find_lr": "zoo.api",
    "finetune": "zoo.api",
    "list_models": "zoo.api",
    "load_dataset": "zoo.api",
    "predict": "zoo.api",
    "pull": "zoo.api",
    "push": "zoo.api",
    "show": "zoo.api",
    "InputError": "zoo.errors",
    "RunError": "zoo.errors",
    "ZooError": "zoo.errors",
}

__all__ = [
    "InputError",
    "RunError",
    "ZooError",
    "__version__",
    "create",
    "evaluate",
    "find_lr",
    "finetune",
    "list_models",
    "load_dataset",
    "predict",
    "pull",
    "push",
    "show",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
