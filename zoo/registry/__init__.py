"""The registry: from a model's name to its description. Imports neither torch nor timm."""
