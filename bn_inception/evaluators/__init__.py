"""Evaluators: from a state to metrics with an exact count."""

from collections.abc import Callable

from bn_inception.state import TrainState

# Makes one evaluation, whose input is being read already.
Evaluate = Callable[[TrainState], dict[str, float]]
