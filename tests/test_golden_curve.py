"""The loss curve of a short run stays what it was, also with another jax: requirements.txt has two."""

import json

import numpy as np

from tests import golden_curve


def test_the_loss_curve_is_the_committed_one(digits_dir, tmp_path):
  """The curve was made with jax 0.10.2. With jax 0.12.0.1 the largest relative difference is 1.7e-7 (2026-11-26).

  The tolerance is some 60 times as much, for other CPUs.
  """
  expected = json.loads(golden_curve.PATH.read_text())
  assert len(expected) == 50 and expected[-1] < 0.6 * expected[0]  # The network learns in these steps.
  np.testing.assert_allclose(golden_curve.losses(digits_dir, tmp_path), expected, rtol=1e-5)
