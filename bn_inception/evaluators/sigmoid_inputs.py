"""The distribution of the inputs of single sigmoids over the evaluation split: Figure 1(b, c), §4.1.

The paper follows "one typical sigmoid, from the last hidden layer" by the 15th, 50th and 85th percentile of its input.
With BN the input is that of inference, with running averages.
"""

import contextlib
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from bn_inception import models, sharding, step as step_lib
from bn_inception.config_keys import Config
from bn_inception.data import device, pipeline
from bn_inception.evaluators import Evaluate, Evaluator, classification
from bn_inception.state import TrainState

PERCENTILES = (15, 50, 85)


def make_evaluator(
  config: Config, mesh: Mesh, source: pipeline.Source, between_batches: Callable[[], None] = lambda: None
) -> Evaluator:
  """Makes the evaluator on the split of `source`, see `classification.make_evaluator`.

  Its result is {"sigmoid_input/UNIT/pPERCENTILE"} for the config's `sigmoid_input_units`. Percentiles are linear
  between order statistics (NumPy's default). Without units the result is {}, and nothing is read.
  """
  units = config.eval.sigmoid_input_units
  if not units:
    return Evaluator(lambda state: None, lambda inputs: lambda state: {})
  model = models.build(config)

  def sigmoid_inputs(params, batch_stats, batch):
    _, sown = model.apply(
      {"params": params, "batch_stats": batch_stats},
      step_lib.preprocess(config.data, batch["image"]),
      train=False,
      mutable=["intermediates"],
    )
    (x,) = sown["intermediates"]["sigmoid_input"]
    return x[:, np.array(units)], batch["mask"]

  programs = {"inputs": jax.jit(sigmoid_inputs, out_shardings=sharding.replicated(mesh))}
  process = dict(process_index=jax.process_index(), process_count=jax.process_count())

  def compile_programs(state: TrainState) -> None:
    shapes = classification.batch_shapes(config.data, mesh, config.eval.batch_size)
    programs["inputs"] = programs["inputs"].lower(state.evaluated_params, state.batch_stats, shapes).compile()

  def start(inputs: contextlib.ExitStack) -> Evaluate:
    batches = device.to_device(
      pipeline.eval_batches(config.data, source, batch_size=config.eval.batch_size, **process), sharding.examples(mesh)
    )
    inputs.callback(batches.close)

    def evaluate(state: TrainState) -> dict[str, float]:
      seen = []
      for batch in batches:
        seen.append(programs["inputs"](state.evaluated_params, state.batch_stats, batch))
        sharding.one_program_at_a_time(mesh, seen[-1])
        between_batches()
      values = np.concatenate([x[mask] for x, mask in jax.device_get(seen)])  # [examples, units]
      percentiles = np.percentile(values.astype(np.float64), PERCENTILES, axis=0)
      return {
        f"sigmoid_input/{unit}/p{percentile}": float(percentiles[row, column])
        for column, unit in enumerate(units)
        for row, percentile in enumerate(PERCENTILES)
      }

    return evaluate

  return Evaluator(compile_programs, start)
