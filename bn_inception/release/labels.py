"""The names of a network's outputs, by which outputs and the classes of a data set are matched.

Released ImageNet networks name no classes; which order each has is known from its own code or README. The WordNet ids
and what people call them are in imagenet_classes.txt (the names are those of ImageNet as torchvision, BSD-3-Clause,
shortens them); the order of ILSVRC-2015 is read from a file of TensorFlow Datasets, without importing it.
"""

import functools
import importlib.util
import os
import pathlib

from bn_inception.release.errors import ReleaseError
from bn_inception.release.release_type import Release

# Class 0 of TF-slim's networks, which no image of ImageNet belongs to.
BACKGROUND = "background"

_MAX_BYTES = 2**22  # 22,000 classes with long names.


def sorted_imagenet() -> tuple[str, ...]:
  """The 1000 WordNet ids of ILSVRC-2012 in alphabetic order, from n01440764 (tench) on."""
  return tuple(_imagenet_names())


def human_name(label: str) -> str:
  """What people call a class: "tench" for the WordNet id n01440764; a label that is no such id names itself."""
  return _imagenet_names().get(label, label)


@functools.cache
def _imagenet_names() -> dict[str, str]:
  lines = pathlib.Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
  return dict(line.split(" ", 1) for line in lines)


def ilsvrc2015() -> tuple[str, ...]:
  """The same ids in the order of the ILSVRC-2015 devkit's map_clsloc.txt, from n02119789 (kit fox) on.

  It is that of TFDS's `imagenet_resized`, whose authors number the classes so.
  """
  package = importlib.util.find_spec("tensorflow_datasets")
  if package is None:
    raise ReleaseError(
      "its classes are in the order of ILSVRC-2015, which is read from TensorFlow Datasets: "
      "pip install tensorflow-datasets"
    )
  path = pathlib.Path(package.submodule_search_locations[0], "image_classification", "imagenet_resized_labels.txt")
  return tuple(path.read_text().split())


def read(path: pathlib.Path, num_classes: int) -> tuple[str, ...]:
  """The names in a file, one a line.

  Args:
    path: the file, UTF-8.
    num_classes: how many there must be.

  Raises:
    ReleaseError: if it cannot be read or does not name each class once.
  """
  try:
    if path.stat().st_size > _MAX_BYTES:
      raise ReleaseError(f"{path} has {path.stat().st_size:,} bytes, which is no list of class names.")
    text = path.read_text("utf-8")
  except OSError as error:
    raise ReleaseError(f"{path} cannot be read: {error.strerror}.") from error
  except UnicodeDecodeError as error:
    raise ReleaseError(f"{path} is not a text file: give one class name a line, in UTF-8.") from error
  names = tuple(line.strip() for line in text.removesuffix("\n").split("\n"))
  check(names, num_classes, str(path))
  return names


def check(names: tuple[str, ...], num_classes: int, source: str) -> None:
  """Checks that names are those of `num_classes` outputs.

  Raises:
    ReleaseError: otherwise; the sentence begins with `source`.
  """
  if len(names) != num_classes:
    raise ReleaseError(
      f"{source} names {len(names)} classes, but the network has {num_classes}: give one name a line, "
      "in the order of its outputs."
    )
  seen = set()
  for number, name in enumerate(names, 1):
    problem = "has no name" if not name else "has a name that came before" if name in seen else ""
    if problem or name != name.strip() or "\n" in name:
      problem = problem or "has a name that a line cannot hold"
      raise ReleaseError(f"{source}: class {number} of {num_classes} {problem} ({name!r}): each needs its own.")
    seen.add(name)


def with_labels(release: Release, path: str | os.PathLike) -> Release:
  """The release with the names in a file, see `read`, in place of those it has."""
  names = read(pathlib.Path(path), release.config.data.num_classes)
  config = release.config.copy_and_resolve_references()
  config.release.classes = "as whoever imported it has named them"
  return release._replace(config=config, labels=names)
