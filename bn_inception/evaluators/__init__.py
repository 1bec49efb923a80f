"""Evaluators: from a state to metrics with an exact count."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

from bn_inception.state import TrainState

# Makes one evaluation, whose input is being read already.
Evaluate = Callable[[TrainState], dict[str, float]]


class Evaluator(NamedTuple):
  """Evaluations of one kind.

  Attributes:
    compile: compiles all programs for states like the given one: what does not fit then shows before the first step.
      Without it they are compiled as they are needed.
    start: begins to read the input of one evaluation, until `inputs` is closed, and returns what makes it.
  """

  compile: Callable[[TrainState], None]
  start: Callable[[contextlib.ExitStack], Evaluate]
