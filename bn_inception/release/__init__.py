"""Released Inception-BN networks: this project's own release folders, and the files of its peers.

`load` gives a network ready for evaluation, `read` its config and variables, `write` makes a release folder.
"""

from bn_inception.release.errors import ReleaseError
from bn_inception.release.folder import write
from bn_inception.release.loading import build, load, read
from bn_inception.release.peers import Release

__all__ = ["Release", "ReleaseError", "build", "load", "read", "write"]
