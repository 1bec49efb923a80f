"""TensorFlow and TFDS as the input pipeline uses it: on the CPU only, and quiet. The data package imports them
from here.

JAX owns the accelerators; without this TensorFlow would take the memory of every GPU it sees. To be imported before
anything else runs a TensorFlow operation: TensorFlow refuses these settings later.
"""

import os

# Both are read when TensorFlow is imported. The second ends a notice about oneDNN, which an input pipeline never runs.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf  # pylint: disable=wrong-import-position
import tensorflow_datasets as tfds  # noqa: F401  pylint: disable=wrong-import-position,unused-import

from bn_inception.data import cores  # pylint: disable=wrong-import-position

for device_type in ("GPU", "TPU"):
  tf.config.set_visible_devices([], device_type)
# Examples are processed in parallel; splitting each operation over the cores as well only costs time.
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(cores.available())
