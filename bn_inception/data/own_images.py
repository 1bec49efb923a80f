"""A data set of TFDS from a folder of images: a folder for each class, or splits that hold such folders."""

import concurrent.futures
import contextlib
import logging
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bn_inception.data import cores, evaluation_crops, photographs, working_folder
from bn_inception.data.host_tf import tf, tfds
from bn_inception.errors import DataError

HOLDOUT = 0.2  # Part of each class that is held out where there are no splits, unless another is given.

_NOT_OWN = ("imagenet2012", "digits", "fake")  # Names that mean something here.
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

_log = logging.getLogger(__name__)


class Example(NamedTuple):
  """An image file and the number of its class."""

  path: pathlib.Path
  label: int


class FolderContents(NamedTuple):
  """What a folder holds.

  Attributes:
    splits: the examples of each.
    class_names: the names of the folders, sorted; of the training split.
    description: how the splits came to be.
  """

  splits: dict[str, list[Example]]
  class_names: tuple[str, ...]
  description: str


def is_source(source: pathlib.Path) -> bool:
  """Whether a folder has folders of images, as far as the names of the files tell."""
  return any(
    path.suffix.lower() in photographs.SUFFIXES for pattern in ("[!.]*/*", "[!.]*/*/*") for path in source.glob(pattern)
  )


def prepare(
  source: pathlib.Path, data_dir: pathlib.Path, name: str, holdout: float | None, seed: int, on_error: str
) -> None:
  """Prepares the data set `name` of a folder of images.

  Args:
    source: the folder.
    data_dir: TFDS data_dir for the result.
    name: NAME[:VERSION].
    holdout, seed: as for `find`.
    on_error: what to do where an image cannot be read: "fail", or "skip" it.

  Raises:
    DataError: one sentence on what cannot be read or does not fit, and what to do.
  """
  match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(\d+\.\d+\.\d+))?", name)
  if not match or match[1] in _NOT_OWN:
    raise DataError(
      f"'{name}' is no name for the images in {source}: give --dataset=NAME or NAME:1.0.0, of small letters, "
      f"digits and _, and none of {', '.join(_NOT_OWN)}."
    )
  name, version = match[1], match[2] or "1.0.0"
  target = data_dir / name / version
  with working_folder.exclusive(target, data_dir) as work:
    if work is None:
      return
    shutil.rmtree(work / "complete", ignore_errors=True)
    contents = find(source, holdout, seed)
    total = sum(map(len, contents.splits.values()))
    _log.info("%s: checking %s images of %d classes.", source, f"{total:,}", len(contents.class_names))
    sound = check(contents)
    counts = {split: len(examples) for split, examples in sound.splits.items()}
    if (bad := total - sum(counts.values())) and on_error == "fail":
      raise DataError(
        f"{source} has {bad} bad image{'s'[: bad > 1]}, named above: mend or remove {'them' if bad > 1 else 'it'}"
        ", or give --on_error=skip."
      )
    for label, class_name in enumerate(contents.class_names):
      if not any(example.label == label for example in sound.splits["train"]):
        raise DataError(f"No image for training is left of the class '{class_name}': add some.")
    if empty := [split for split, count in counts.items() if not count]:
      raise DataError(f"No image of the {empty[0]} split is left: add some.")
    paths = [example.path for examples in sound.splits.values() for example in examples]
    working_folder.check_space(work, int(1.2 * sum(path.stat().st_size for path in paths)))
    write(sound, source, name, version, work / "complete")
    _log.info("%s", contents.description)
    working_folder.finish(work, target, f"{name}:{version}", data_dir, counts)
    _log.info("Train on it: --config.data.name=%s --config.data.num_classes=%d", name, len(contents.class_names))


def find(source: pathlib.Path, holdout: float | None, seed: int) -> FolderContents:
  """Finds classes and splits; hidden files are left out.

  Args:
    source: the folder.
    holdout: part of each class for validation, above 0 and below 1, where there are no splits; None: HOLDOUT.
    seed: of the choice of these.

  Raises:
    DataError: for what is no folder of folders, fewer than two classes, a class without images.
  """
  folders = _folders(source)
  if {"train"} < {folder.name for folder in folders} <= set(_SPLITS) and all(
    any(path.is_dir() for path in folder.iterdir()) for folder in folders
  ):
    if holdout is not None:
      raise DataError(
        f"{source} has splits of its own ({', '.join(folder.name for folder in folders)}): leave out --holdout."
      )
    by_split = {}
    for folder in folders:
      if _SPLITS[folder.name] in by_split:
        raise DataError(f"{source} has two folders for the {_SPLITS[folder.name]} split: make one of them.")
      by_split[_SPLITS[folder.name]] = _classes(folder)
    names = tuple(by_split["train"])
    for split, classes in by_split.items():
      if unknown := [name for name in classes if name not in names]:
        raise DataError(
          f"The {split} split in {source} has the class '{unknown[0]}', which training has not: add it "
          "there or remove it."
        )
    splits = {
      split: [Example(path, names.index(name)) for name, paths in classes.items() for path in paths]
      for split, classes in by_split.items()
    }
    return FolderContents(splits, names, "The splits are those of the folder.")
  classes = _classes(source)
  holdout = HOLDOUT if holdout is None else holdout
  splits = {"train": [], "validation": []}
  for label, (name, paths) in enumerate(classes.items()):
    if len(paths) < 2:
      raise DataError(
        f"The class '{name}' in {source} has one image, and one for training and one to hold out are needed: add some."
      )
    held_out = min(max(round(holdout * len(paths)), 1), len(paths) - 1)
    chosen = set(np.random.default_rng((seed, label)).permutation(len(paths))[:held_out].tolist())
    for place, path in enumerate(paths):
      splits["validation" if place in chosen else "train"].append(Example(path, label))
  return FolderContents(
    splits, tuple(classes), f"Held out for validation: {holdout:g} of each class, chosen with seed {seed}."
  )


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
  if loose := [path for path in entries if not path.is_dir()]:
    raise DataError(f"{loose[0]} lies beside the folders of the classes: move or remove it.")
  return entries


def _classes(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The files of each class, sorted."""
  classes = {}
  for of_class in _folders(folder):
    if of_class.name != of_class.name.strip() or not of_class.name.isprintable():
      raise DataError(
        f"The class name {of_class.name!r} in {folder} begins or ends with blanks or cannot be printed: "
        "rename the folder."
      )
    paths = sorted(path for path in of_class.iterdir() if not path.name.startswith("."))
    if inner := [path for path in paths if path.is_dir()]:
      raise DataError(
        f"{inner[0]} is a folder within the class '{of_class.name}': put its images into that of the class."
      )
    if not paths:
      raise DataError(f"{of_class} holds no image: add some, or remove the folder.")
    classes[of_class.name] = paths
  if len(classes) < 2:
    raise DataError(
      f"{folder} has {len(classes)} folders, and there is one for each class: give a folder with two or more."
    )
  return classes


def check(contents: FolderContents) -> FolderContents:
  """Decodes every image, as Pillow and as the input pipeline does; warns of each that cannot be.

  Returns:
    What is left without these.
  """

  def problem(example: Example) -> tuple[str, photographs.Photograph | None]:
    try:
      photograph = photographs.read(example.path)
      evaluation_crops.decode(tf.constant(photograph.encoded), channels=3)
      return "", photograph._replace(encoded=b"")
    except photographs.PhotographError as error:
      return str(error), None
    except tf.errors.OpError:
      return f"{example.path} is of a kind that TensorFlow cannot decode", None

  splits, turned, converted = {}, 0, 0
  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    for split, examples in contents.splits.items():
      splits[split] = []
      for example, (sentence, photograph) in zip(examples, pool.map(problem, examples)):
        if photograph is None:
          _log.warning("Bad image: %s.", sentence)
          continue
        splits[split].append(example)
        turned, converted = turned + photograph.is_turned, converted + photograph.is_converted
  if turned:
    _log.info("%d images are stored turned, as their EXIF orientation says.", turned)
  if converted:
    _log.info("%d images of other formats are stored as PNG.", converted)
  return contents._replace(splits=splits)


def write(contents: FolderContents, source: pathlib.Path, name: str, version: str, data_dir: pathlib.Path) -> None:
  """Writes the data set with TFDS as ArrayRecord: `image`, `label`, and `file_name` below `source`; shuffled."""

  def features(example: Example) -> dict:
    return {
      "image": photographs.read(example.path).encoded,
      "label": example.label,
      "file_name": example.path.relative_to(source).as_posix(),
    }

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The images of one folder."""

    VERSION = tfds.core.Version(version)

    def _info(self) -> tfds.core.DatasetInfo:
      return tfds.core.DatasetInfo(
        builder=self,
        description=f"Images of a folder. {contents.description}",
        features=tfds.features.FeaturesDict(
          {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=contents.class_names),
            "file_name": tfds.features.Text(),
          }
        ),
        supervised_keys=("image", "label"),
      )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
      del dl_manager  # Nothing to download.
      return {split: self._generate_examples(examples) for split, examples in contents.splits.items()}

    def _generate_examples(self, examples: list[Example]) -> Iterator:
      with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
        for start in range(0, len(examples), 64):  # So many are in memory.
          for example in pool.map(features, examples[start : start + 64]):
            yield example["file_name"], example

  Builder.name = name
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(None):  # TFDS prints that it downloads.
    try:
      Builder(data_dir=data_dir).download_and_prepare(file_format="array_record")
    except RuntimeError as error:  # What ArrayRecord's writer makes of an OSError.
      raise OSError(None, str(error).partition(";")[0], str(data_dir)) from error
