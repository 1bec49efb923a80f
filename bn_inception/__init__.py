"""Batch Normalization (Ioffe and Szegedy, 2015) and its Inception experiments in JAX and Flax."""

import pathlib

# An installation has `configs` and `scripts` inside this package, a checkout beside it. They are `bn_inception.configs`
# and `bn_inception.scripts` in both, so that they do not take the names of folders of other projects.
if not pathlib.Path(__file__).with_name("configs").exists():
  __path__.append(str(pathlib.Path(__file__).parents[1]))
