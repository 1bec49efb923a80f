"""From the tensors of a peer's file to this project's variables: every name known, every shape right, nothing else.

Weights are only moved and transposed, never computed: what a peer does differently its configuration says.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from bn_inception import models
from bn_inception.config_dict import ConfigDict
from bn_inception.models import inception
from bn_inception.release.errors import ReleaseError

Tensors = dict[str, np.ndarray]
Shape = tuple[int, ...]


def expected_shapes(config: ConfigDict) -> dict[str, Shape]:
  """The shapes of a config's variables by flat name ("params/conv1/conv/kernel"); nothing is computed."""
  image = (1, config.data.image_size, config.data.image_size, len(config.data.mean))
  model = models.build(config)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(image), train=False))
  kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
  heads = [name for name in kept["params"] if name.startswith("auxiliary_")]  # In training only.
  kept = {
    collection: {name: node for name, node in tree.items() if name not in heads} for collection, tree in kept.items()
  }
  return {name: leaf.shape for name, leaf in flax.traverse_util.flatten_dict(kept, sep="/").items()}


def assemble(
  tensors: Tensors,
  config: ConfigDict,
  source_name: Callable[[str], str],
  layout: Callable[[str, Shape], tuple[Shape, Shape]],
  ignored: Iterable[str] = (),
) -> dict[str, Any]:
  """Arranges a peer's tensors as the variables of a config's network.

  Args:
    tensors: of the file.
    config: of the network.
    source_name: the peer's name of a variable of this project, by the latter's flat name.
    layout: of a variable's flat name and shape: (the peer's shape, the order of its axes here), see `torch_layout`.
    ignored: tensors that no evaluation needs.

  Returns:
    {"params", "batch_stats"}, nested, float32.

  Raises:
    ReleaseError: naming the first few tensors that are missing, unknown, of a wrong shape or not finite. The sentence
      lacks the file's name, which the caller puts before it.
  """
  shapes = expected_shapes(config)
  sources = {name: source_name(name) for name in shapes}
  _refuse("lacks", [source for source in sources.values() if source not in tensors])
  _refuse("has unknown", sorted(set(tensors) - set(sources.values()) - set(ignored)))
  variables, wrong = {}, []
  for name, shape in shapes.items():
    tensor = tensors[sources[name]]
    wanted, axes = layout(name, shape)
    # Vectors are [C], [1, C] or [1, C, 1, 1]: axes of length 1 do not matter.
    if _long_axes(tensor.shape) != _long_axes(wanted) or tensor.dtype.kind != "f":
      wrong.append(f"{sources[name]} ({tensor.dtype} {tensor.shape} for {wanted})")
    else:
      with np.errstate(over="ignore"):  # What is too large for float32 becomes infinite, and is refused below.
        variables[name] = tensor.reshape(wanted).transpose(axes).reshape(shape).astype(np.float32)
  _refuse("has, in a wrong shape or type,", wrong)
  if broken := [sources[name] for name, values in variables.items() if not np.isfinite(values).all()]:
    raise ReleaseError(f"its {broken[0]} holds values that are not finite ({len(broken)} of {len(shapes)} tensors do)")
  return flax.traverse_util.unflatten_dict(variables, sep="/")


def _refuse(verb: str, names: list[str]) -> None:
  if names:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise ReleaseError(f"it {verb} {', '.join(names[:3])}{more}, so it is not the network that it was taken for")


def _long_axes(shape: Shape) -> Shape:
  return tuple(size for size in shape if size != 1)


def torch_layout(name: str, shape: Shape) -> tuple[Shape, Shape]:
  """PyTorch, MXNet and Caffe: convolutions [out, in, height, width], fully connected [out, in]."""
  axes = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}[len(shape)]
  return tuple(shape[axes.index(axis)] for axis in range(len(shape))), axes


def tensorflow_layout(name: str, shape: Shape) -> tuple[Shape, Shape]:
  """TensorFlow: this project's, but the depthwise kernel is [height, width, in, multiplier]."""
  if name.endswith("/depthwise/kernel"):
    shape = (*shape[:2], math.prod(shape[2:]) // inception.DEPTH_MULTIPLIER, inception.DEPTH_MULTIPLIER)
  return shape, tuple(range(len(shape)))
