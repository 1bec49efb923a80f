"""Threads are as many as the cores that the process may use."""

import os
import subprocess
import sys

import pytest

from bn_inception.data import cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a platform with affinities")
def test_a_process_that_is_bound_to_one_core_has_one(repository):
  """Of the whole process: ours, TensorFlow's and the decoding threads."""
  code = """
import os
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
from bn_inception.data import cores, pipeline
from bn_inception.data.host_tf import tf
from ml_collections import ConfigDict
import numpy as np, threading
data = ConfigDict({"name": "fake", "num_classes": 3, "mean": (0.0,), "image_size": 8, "shuffle": "none",
                   "interpolation": "random", "on_error": "fail", "cache": False})
batches = pipeline.train_batches(data, pipeline.open_source(data, "train"), seed=0, batch_size=1280)
next(batches)
decoding = sum(thread.name.startswith("decode") for thread in threading.enumerate())
print(cores.available(), tf.config.threading.get_inter_op_parallelism_threads(), decoding)
"""
  result = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
  assert result.stdout.split() == ["1", "1", "4"]  # Three more than cores, see pipeline.py.


def test_without_affinities_it_is_the_cores_of_the_machine(monkeypatch):
  monkeypatch.delattr(os, "sched_getaffinity", raising=False)
  for count, expected in ((5, 5), (None, 1)):
    monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
    assert cores.available() == expected
