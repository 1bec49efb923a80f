"""Released Inception-BN networks: this project's own release folders and runs, and the files of its peers.

`load` gives a network ready for evaluation, `read` its config, variables and labels. `write` makes a release folder of
what was read or of a checkpoint (`from_run`), `write_torch` a file for PyTorch.
"""

from bn_inception.release.errors import ReleaseError
from bn_inception.release.export import write_torch
from bn_inception.release.folder import check_free, write
from bn_inception.release.labels import with_labels
from bn_inception.release.loading import build, load, read
from bn_inception.release.released import Release
from bn_inception.release.run import from_run, is_run

__all__ = ["Release", "ReleaseError", "build", "check_free", "from_run", "is_run", "load", "read", "with_labels",
           "write", "write_torch"]
