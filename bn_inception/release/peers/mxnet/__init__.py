"""MXNet: file.py recognises and reads its files, mapping.py makes a release of their tensors."""

import os
import pathlib

from bn_inception import paths
from bn_inception.release.peers.format import Format
from bn_inception.release.peers.mxnet import file, mapping
from bn_inception.release.release_type import Release


def _read(path: pathlib.Path, content: bytes, beside: list[file.Node]) -> Release:
  del path
  return mapping.to_release(file.read(content), beside)


def _read_graph(path: pathlib.Path, symbol: str | os.PathLike | None) -> list[file.Node]:
  return file.read_symbol(pathlib.Path(paths.local(symbol, "--symbol")) if symbol else file.symbol_beside(path))


FORMAT = Format("MXNet", file.recognises, _read, read_beside=_read_graph)
