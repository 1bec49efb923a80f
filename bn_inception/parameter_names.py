"""Parameters chosen by patterns of their names, in `init.freeze`, `init.skip` and `learning_rate_factors`.

A name is a path, "inception_3a/1x1/bn/gamma". A pattern is that of a file (`*`, `?`, `[ab]`) for the name or for what
it begins with: "inception_3*" are all parameters of 3a, 3b and 3c, "*/bn" those of every BN layer. BN statistics have
such names too ("inception_3a/1x1/bn/mean").
"""

import fnmatch
from collections.abc import Callable, Sequence
from typing import Any

import jax


def matches(name: str, patterns: Sequence[str]) -> bool:
  """Whether one of the patterns is that of the name or of a module that it is in."""
  parts = name.split("/")
  beginnings = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
  return any(fnmatch.fnmatchcase(beginning, pattern) for pattern in patterns for beginning in beginnings)


def is_loaded(name: str, skip: Sequence[str]) -> bool:
  """Whether a parameter or statistic of a run is that of its `init.checkpoint`, which has no auxiliary heads."""
  return not name.startswith("auxiliary_") and not matches(name, skip)


def map_named(f: Callable[..., Any], tree: Any, *rest: Any) -> Any:
  """f(name, leaf, ...) of every leaf of nested dicts, as such a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, *leaves: f("/".join(entry.key for entry in path), *leaves), tree, *rest
  )


def names(tree: Any) -> list[str]:
  """The names of all leaves."""
  return jax.tree.leaves(map_named(lambda name, _: name, tree))


def factor(entry: str) -> tuple[str, float]:
  """(pattern, factor) of an entry of `learning_rate_factors`, "logits=10".

  Raises:
    ValueError: if it is none.
  """
  pattern, equals, value = entry.rpartition("=")
  if not (pattern and equals and 0 < float(value) < float("inf")):
    raise ValueError(f"{entry!r} is no pattern and factor")
  return pattern, float(value)
