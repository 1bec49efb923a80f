"""TensorFlow and TFDS as the input pipeline uses it: on the CPU only, and quiet. The data package imports them
from here.

JAX owns the accelerators; without this TensorFlow would take the memory of every GPU it sees. TensorFlow takes these
settings only before it runs its first operation.
"""

import contextlib
import os

# Both are read when TensorFlow is imported. The second ends a notice about oneDNN, which an input pipeline never runs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf  # pylint: disable=wrong-import-position
import tensorflow_datasets as tfds  # noqa: F401  pylint: disable=wrong-import-position,unused-import

from bn_inception.data import cores  # pylint: disable=wrong-import-position

# TensorFlow that was used before (a notebook that looked at its images) refuses settings: then it keeps those it has,
# which are slower at most.
for set_one in (
  lambda: tf.config.set_visible_devices([], "GPU"),
  lambda: tf.config.set_visible_devices([], "TPU"),
  # Examples are processed in parallel; splitting each operation over the cores as well only costs time.
  lambda: tf.config.threading.set_intra_op_parallelism_threads(1),
  lambda: tf.config.threading.set_inter_op_parallelism_threads(cores.available()),
):
  with contextlib.suppress(RuntimeError):
    set_one()
