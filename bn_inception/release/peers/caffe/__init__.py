"""Caffe: file.py recognises and reads its files, mapping.py makes a release of their tensors."""

import pathlib

from bn_inception.release.peers.caffe import file, mapping
from bn_inception.release.peers.format import Format
from bn_inception.release.release_type import Release


def _read(path: pathlib.Path, content: bytes, beside: None) -> Release:
  del path, beside
  return mapping.to_release(file.read(content))


FORMAT = Format("Caffe", file.recognises, _read)
