"""`ConfigDict` of ml_collections, or what a release folder needs of it where that is not installed.

A release is loaded, and predictions are made, with jax, flax, NumPy, safetensors and Pillow alone.
"""

import copy
import json
from typing import Any

try:
  from ml_collections import ConfigDict
except ModuleNotFoundError:

  class ConfigDict(dict):
    """A tree of settings, `config.data.image_size` or `config["data"]["image_size"]`."""

    def __init__(self, tree: dict[str, Any] | None = None):
      super().__init__(
        {name: ConfigDict(value) if isinstance(value, dict) else value for name, value in (tree or {}).items()}
      )

    def __getattr__(self, name: str) -> Any:
      if name not in self:
        raise AttributeError(f"there is no {name!r}")
      return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
      self[name] = value

    def copy_and_resolve_references(self) -> "ConfigDict":
      return copy.deepcopy(self)

    def to_json(self) -> str:
      return json.dumps(self)


__all__ = ["ConfigDict"]
