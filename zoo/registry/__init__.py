"""The registry: from a model's name to its description. Imports neither torch nor timm."""

from zoo.registry.load import Registry, load_registry
from zoo.registry.overrides import apply_overrides
from zoo.registry.recipe import Recipe
from zoo.registry.registry import Name, Resolved, list_models, parse_name, resolve, show

__all__ = [
    "Name",
    "Recipe",
    "Registry",
    "Resolved",
    "apply_overrides",
    "list_models",
    "load_registry",
    "parse_name",
    "resolve",
    "show",
]
