"""Released Inception-BN networks: this project's own release folders and runs, and the files of its peers.

`load` gives a network ready for evaluation, `features` its intermediate activations, `read` its config, variables and
labels, `human_name` what people call a class. `write` makes a release folder of what was read or of a checkpoint
(`from_run`), `export.FORMATS` files for other frameworks.

What is imported here is jax, flax, NumPy and safetensors alone; with Pillow to read photographs that is all that
loading a release folder and predicting need. Runs and the files of others need the packages of requirements.txt.
"""

from bn_inception.models import features
from bn_inception.release.card import with_license, with_note
from bn_inception.release.errors import ReleaseError
from bn_inception.release.export import FORMATS, write_torch
from bn_inception.release.folder import check_free, write
from bn_inception.release.labels import human_name, with_labels
from bn_inception.release.loading import build, load, read
from bn_inception.release.release_type import Release
from bn_inception.release.training_run import from_run, is_run

__all__ = [
  "FORMATS",
  "Release",
  "ReleaseError",
  "build",
  "check_free",
  "features",
  "from_run",
  "human_name",
  "is_run",
  "load",
  "read",
  "with_labels",
  "with_license",
  "with_note",
  "write",
  "write_torch",
]
