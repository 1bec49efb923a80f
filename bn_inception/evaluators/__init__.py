"""Evaluators: from a state to metrics with an exact count."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from bn_inception.state import TrainState

# Makes one evaluation. Its input is already being read.
Evaluate = Callable[[TrainState], dict[str, float]]


class Evaluator(NamedTuple):
  """Evaluations of one kind.

  Attributes:
    compile: compiles all programs for states like the given state, so that a program that does not fit fails before the
      first step. Without this call the programs are compiled when they are needed.
    start: begins to read the input of one evaluation, until `inputs` is closed, and returns the function that makes the
      evaluation.
  """

  compile: Callable[[TrainState], None]
  start: Callable[[contextlib.ExitStack], Evaluate]
