"""What a network makes of image files: its likeliest classes and its features, in a table."""

from collections.abc import Iterator, Sequence
import concurrent.futures
import csv
import json
import logging
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import numpy as np

from bn_inception import paths, release
from bn_inception.data import cores, evaluation_crops, photographs
from bn_inception.data.host_tf import tf
from bn_inception.errors import StorageError, UserError
from bn_inception.release import labels

FORMATS = ("csv", "jsonl", "npz")

_BATCH = 32  # Images that pass the network at a time, at most.

_log = logging.getLogger(__name__)


class PredictError(UserError, ValueError):
  """Predictions that cannot be made; the text is one sentence that says what is wrong and what to do."""


class Table(NamedTuple):
  """Predictions of n images.

  Attributes:
    images: their paths.
    classes: str [n, top], the likeliest first: the network's own labels (WordNet ids), or the numbers of its outputs.
    names: str [n, top], what people call these.
    probabilities: float32 [n, top].
    features: float32 [n, ...], or None.
    skipped: how many images could not be read.
  """

  images: list[str]
  classes: np.ndarray
  names: np.ndarray
  probabilities: np.ndarray
  features: np.ndarray | None
  skipped: int


def predict_files(checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike], *, top: int = 5,
                  features: str | None = None) -> Table:
  """Predicts image files as evaluation does: the centre crop, upright, with the network's own preprocessing.

  Args:
    checkpoint: a run directory, a release folder, or the file of a peer.
    images: files, and folders whose images are taken, also from folders within.
    top: how many classes of each, at most as many as there are.
    features: name of intermediate activations, see `release.features`.

  Raises:
    PredictError: if there is no such file, no image at all, none that can be read, or no such layer.
    ReleaseError: if the checkpoint cannot be used; of a run also what `release.from_run` raises.
  """
  files = _files(images)
  one = release.read(checkpoint)
  model, variables, preprocess = release.build(one)
  data = one.config.data
  shape = (min(_BATCH, len(files)), data.image_size, data.image_size, len(data.mean))
  # No photograph is of the background class that TF-slim's networks have.
  outputs = [output for output in range(data.num_classes) if not one.labels or one.labels[output] != labels.BACKGROUND]
  class_names = np.array([one.labels[output] if one.labels else str(output) for output in outputs])
  human_names = np.array([release.human_name(name) for name in class_names])

  def forward(variables: Any, pixels: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    x = preprocess(pixels)
    logits = model.apply(variables, x, train=False)[:, np.array(outputs)]
    found = release.features(model, variables, x, [features])[features] if features else None
    return jax.nn.softmax(logits), found

  try:
    jax.eval_shape(forward, variables, jax.ShapeDtypeStruct(shape, np.uint8))
  except ValueError as error:
    raise PredictError(str(error)) from error
  compiled = jax.jit(forward)
  read, probabilities, activations = [], [], []
  with jax.default_matmul_precision("highest"):
    for names, pixels in _batches(files, shape[0], data):
      padded = np.zeros(shape, np.uint8)
      padded[:len(pixels)] = pixels
      of_batch, found = jax.device_get(compiled(variables, padded))
      read += names
      probabilities.append(of_batch[:len(names)])
      if features:
        activations.append(found[:len(names)].astype(np.float32))
  if not read:
    raise PredictError(f"None of the {len(files)} images can be read: give others as --images.")
  probabilities = np.concatenate(probabilities)
  likeliest = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
  return Table(read, class_names[likeliest], human_names[likeliest], np.take_along_axis(probabilities, likeliest, 1),
               np.concatenate(activations) if features else None, len(files) - len(read))


def write_predictions(checkpoint: str | os.PathLike, images: Sequence[str | os.PathLike], output: str | os.PathLike, *,
                      top: int = 5, features: str | None = None) -> int:
  """Writes what `predict_files` gives: whole, or not at all.

  Args:
    checkpoint, images, top, features: as there.
    output: .csv (a line an image: image, class_1, name_1, probability_1, ..., feature_0, ...), .jsonl (an object a
      line: image, classes, names, probabilities, features) or .npz (arrays: images, classes, names, probabilities,
      features).

  Returns:
    How many images could not be read, and were skipped.

  Raises:
    What `predict_files` does; PredictError also for an output of another kind, or one that exists.
    StorageError: if it cannot be written.
  """
  output = pathlib.Path(paths.local(output, "--output"))
  kind = output.suffix.removeprefix(".")
  if kind not in FORMATS:
    raise PredictError(f"--output={output} is of no kind that is written: end it in .{', .'.join(FORMATS)}.")
  if output.exists():
    raise PredictError(f"{output} exists already: give another --output or remove it.")
  if not output.absolute().parent.is_dir():
    raise PredictError(f"The folder of --output={output} does not exist: make it first.")
  table = predict_files(checkpoint, images, top=top, features=features)
  if kind == "csv" and table.features is not None and table.features.ndim != 2:
    raise PredictError(f"A .csv holds features that are vectors, and {features} is "
                       f"{'x'.join(map(str, table.features.shape[1:]))} for each image: give an --output in .jsonl or "
                       ".npz.")
  try:
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as folder:
      partial = pathlib.Path(folder, output.name)
      {"csv": _write_csv, "jsonl": _write_jsonl, "npz": _write_npz}[kind](table, partial)
      partial.replace(output)
  except OSError as error:
    raise StorageError(f"{output} cannot be written: {error.strerror or error}.") from error
  for image, names, probabilities in list(zip(table.images, table.names, table.probabilities))[:10]:
    _log.info("%s: %s", image, ", ".join(f"{name} {p:.1%}" for name, p in zip(names, probabilities)))
  _log.info("%s: %d images%s.", output, len(table.images),
            f", {table.skipped} more could not be read and were skipped" if table.skipped else "")
  return table.skipped


def _files(images: Sequence[str | os.PathLike]) -> list[pathlib.Path]:
  files = []
  for given in images:
    path = pathlib.Path(paths.local(given, "A path of --images"))
    if path.is_dir():
      inside = sorted(file for file in path.rglob("*")
                      if file.suffix.lower() in photographs.SUFFIXES and not file.name.startswith("."))
      if not inside:
        raise PredictError(f"The folder {path} of --images holds no file that ends in "
                           f"{', '.join(photographs.SUFFIXES)}: give another one, or the files themselves.")
      files += inside
    elif path.exists():
      files.append(path)
    else:
      raise PredictError(f"{path} of --images does not exist: give files, or folders with images.")
  return files


def _batches(files: list[pathlib.Path], batch: int, data: Any) -> Iterator[tuple[list[str], np.ndarray]]:
  """Paths and pixels, uint8 [n, H, W, C], of the images that can be read; names the others."""
  def load(path: pathlib.Path) -> np.ndarray | None:
    try:
      encoded = tf.constant(photographs.read(path).encoded)
      return evaluation_crops.centre_crop(
          encoded, size=data.image_size, resize=data.eval_resize, channels=len(data.mean)).numpy()
    except photographs.PhotographError as error:
      _log.warning("Skipped: %s.", error)
    except tf.errors.OpError:
      _log.warning("Skipped: %s is of a kind that TensorFlow cannot decode.", path)

  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    for start in range(0, len(files), batch):
      part = files[start:start + batch]
      loaded = [(str(path), pixels) for path, pixels in zip(part, pool.map(load, part)) if pixels is not None]
      if loaded:
        yield [path for path, _ in loaded], np.stack([pixels for _, pixels in loaded])


def _write_csv(table: Table, path: pathlib.Path) -> None:
  numbers = range(1, table.classes.shape[1] + 1)
  header = ["image"] + [f"{kind}_{number}" for number in numbers for kind in ("class", "name", "probability")]
  width = 0 if table.features is None else table.features.shape[1]
  with path.open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(header + [f"feature_{number}" for number in range(width)])
    for row, image in enumerate(table.images):
      found = zip(table.classes[row], table.names[row], table.probabilities[row])
      writer.writerow([image, *(value for triple in found for value in triple),
                       *(table.features[row] if width else ())])


def _write_jsonl(table: Table, path: pathlib.Path) -> None:
  with path.open("w") as file:
    for row, image in enumerate(table.images):
      line = {"image": image, "classes": table.classes[row].tolist(), "names": table.names[row].tolist(),
              "probabilities": table.probabilities[row].tolist()}
      if table.features is not None:
        line["features"] = table.features[row].tolist()
      file.write(json.dumps(line) + "\n")


def _write_npz(table: Table, path: pathlib.Path) -> None:
  features = {} if table.features is None else {"features": table.features}
  np.savez(path, images=np.array(table.images), classes=table.classes, names=table.names,
           probabilities=table.probabilities, **features)
