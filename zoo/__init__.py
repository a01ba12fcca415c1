"""zoo: semantic segmentation models on timm backbones, by name.

Names are loaded on first use, so that `import zoo` imports neither torch nor timm.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.common.errors import InputError, RunError, ZooError
    from zoo.creation.create import create
    from zoo.creation.locate import pull
    from zoo.data.load import load_dataset
    from zoo.evaluation.evaluate import evaluate
    from zoo.exporting.export import export
    from zoo.hub.folder import save
    from zoo.hub.push import push
    from zoo.inference.predictor import Predictor, predict
    from zoo.leaderboard.lookup import show
    from zoo.models.layers import freeze
    from zoo.registry.resolve import list_models
    from zoo.training.find_lr import find_lr
    from zoo.training.finetune import finetune

__version__ = "0.1.0"

_HOMES = {
    "InputError": "zoo.common.errors",
    "Predictor": "zoo.inference.predictor",
    "RunError": "zoo.common.errors",
    "ZooError": "zoo.common.errors",
    "create": "zoo.creation.create",
    "evaluate": "zoo.evaluation.evaluate",
    "export": "zoo.exporting.export",
    "find_lr": "zoo.training.find_lr",
    "finetune": "zoo.training.finetune",
    "freeze": "zoo.models.layers",
    "list_models": "zoo.registry.resolve",
    "load_dataset": "zoo.data.load",
    "predict": "zoo.inference.predictor",
    "pull": "zoo.creation.locate",
    "push": "zoo.hub.push",
    "save": "zoo.hub.folder",
    "show": "zoo.leaderboard.lookup",
}

__all__ = [
    "InputError",
    "Predictor",
    "RunError",
    "ZooError",
    "__version__",
    "create",
    "evaluate",
    "export",
    "find_lr",
    "finetune",
    "freeze",
    "list_models",
    "load_dataset",
    "predict",
    "pull",
    "push",
    "save",
    "show",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
