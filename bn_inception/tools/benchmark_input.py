"""How many training images a second the host prepares, beside other pipelines on the same records and cores.

The pipelines run in turns, several rounds, each from a new start with a warm-up that does not count; no two at a time.
Ours and Grain's read their records from the files; the others get the same records from memory (torchvision's even
parsed), which is to their advantage.
"""

import datetime
import importlib.util
import json
import logging
import math
import os
import pathlib
import pickle
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from bn_inception.data import color_distortions, cores, datasets, pipeline
from bn_inception.data.grain_source import GrainSource
from bn_inception.data.host_tf import tf
from bn_inception.tools import machine

_log = logging.getLogger(__name__)

OURS, DECODE, FLAX, GRAIN, TORCH = (
  "ours: all host distortions, uint8",
  "decode only: whole images, no resize",
  "tf.data as in flax's ImageNet example",
  "Grain: OpenCV crop, resize, flip, uint8",
  "torchvision RandomResizedCrop DataLoader",
)
_ROUNDS, _SECONDS, _WARM_UP_BATCHES = 7, 4.0, 12
_PASSES, _IMAGES_PER_PASS = 3, 5_000


def benchmark(config: ConfigDict, *, max_records: int, batch_size: int, json_path: str | None) -> dict[str, Any]:
  """Measures and prints a table.

  Args:
    config: a training config; its `data` and `seed` are what ours runs.
    max_records: of the training split this many records are used, or all if it has fewer.
    batch_size: of all pipelines.
    json_path: file for the result, or None.

  Returns:
    The result, as in the file: {"pipelines": {name: {"images_per_second": {"median", "least", "most"},
    "images_per_second_and_core", "images_per_cpu_second"}}, "ratios", "memory_mb", ...}.

  Raises:
    DataError: if the data cannot be read.
  """
  if json_path:
    pathlib.Path(json_path).parent.mkdir(parents=True, exist_ok=True)
  data = config.data.copy_and_resolve_references()
  whole = datasets.open_split(data, data.train_split)
  if max_records < whole.num_examples:
    data.train_split = f"{data.train_split}[:{max_records}]"
  source = pipeline.open_source(data, data.train_split)
  split = source.split
  serialized = source.records.read(range(split.num_examples))
  encoded = list(_parse(split, serialized)["image"].numpy())
  size = data.image_size

  measure = {
    OURS: lambda: _measure(pipeline.train_batches(data, source, seed=config.seed, batch_size=batch_size), batch_size),
    DECODE: lambda: _measure(_decode_only(split, serialized, batch_size), batch_size),
    FLAX: lambda: _measure(_flax_style(split, serialized, size, batch_size), batch_size),
  }
  if reason := missing("grain"):
    _log.info("%s: not measured, %s", GRAIN, reason)
  else:
    records = GrainSource(data, data.train_split, decode=False)
    measure[GRAIN] = lambda: _measure_program("grain_loader", records, size, batch_size)
  if reason := missing("torch") or missing("torchvision"):
    _log.info("%s: not measured, %s", TORCH, reason)
  else:
    measure[TORCH] = lambda: _measure_program("torchvision_loader", encoded, size, batch_size)

  load = os.getloadavg()[0]
  memory = _memory(data, source, config.seed, batch_size)
  measured = {name: [] for name in measure}
  names = list(measure)
  for number in range(_ROUNDS):
    for name in names[number % len(names) :] + names[: number % len(names)]:  # None is always first.
      measured[name].append(measure[name]())
    _log.info(
      "Round %d of %d: %s images/s",
      number + 1,
      _ROUNDS,
      ", ".join(f"{runs[-1][0]:,.0f} ({name.split(':')[0].split(' ')[0]})" for name, runs in measured.items()),
    )

  result = {
    "date": datetime.date.today().isoformat(),
    "processor": machine.processor(),
    "cores": cores.available(),
    "load_before": round(load, 2),
    "tensorflow": tf.__version__,
    "data": split.name,
    "records": split.num_examples,
    "batch_size": batch_size,
    "image_size": size,
    "mean_bytes": round(statistics.mean(map(len, encoded))),
    "dct": "INTEGER_ACCURATE, in ours and in decode only; TensorFlow's default in flax's",
    "pipelines": {name: _summary(runs) for name, runs in measured.items()},
    "memory_mb": memory,
    "photometric_ms_per_batch_of_32": _photometric_ms(config.seed, size),
    "device": jax.devices()[0].device_kind,
  }
  medians = {name: row["images_per_second"]["median"] for name, row in result["pipelines"].items()}
  result["ratios"] = {f"ours / {name}": round(medians[OURS] / medians[name], 2) for name in names if name != OURS}
  _log.info("\n%s", _table(result))
  if json_path:
    pathlib.Path(json_path).write_text(json.dumps(result, indent=2) + "\n")
  return result


def _parse(split: datasets.Split, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
  """`image` (encoded) and `label` of one or several records."""
  types = {split.image_key: tf.string, split.label_key: tf.int64}
  example = tf.io.parse_example(serialized, {key: tf.io.FixedLenFeature([], dtype) for key, dtype in types.items()})
  return {"image": example[split.image_key], "label": example[split.label_key]}


def _measure(batches: Iterator[object], batch_size: int) -> tuple[float, float]:
  """Images a second, and images for each second of processor time of this process."""
  for _ in range(_WARM_UP_BATCHES):
    next(batches)
  count, usage, begin = 0, _cpu_seconds(), time.monotonic()
  while (elapsed := time.monotonic() - begin) < _SECONDS:
    next(batches)
    count += batch_size
  return count / elapsed, count / (_cpu_seconds() - usage)


def missing(package: str) -> str | None:
  """What to say where an optional package is not installed; None where it is."""
  if importlib.util.find_spec(package):
    return None
  install = 'pip install -e ".[grain]"' if package == "grain" else f"pip install {package}"
  return f"{package} is not installed: {install}."


def _measure_program(module: str, records: Any, size: int, batch_size: int) -> tuple[float, float]:
  """As `_measure`, by a program that is given pickled records, with a process for each core, whose processor time is
  not known here."""
  with tempfile.NamedTemporaryFile() as file:
    pathlib.Path(file.name).write_bytes(pickle.dumps(records))
    arguments = (file.name, size, batch_size, cores.available(), _WARM_UP_BATCHES, _SECONDS)
    command = [sys.executable, "-m", f"bn_inception.tools.{module}", *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
  return float(result.stdout), math.nan


def _cpu_seconds() -> float:
  usage = resource.getrusage(resource.RUSAGE_SELF)
  return usage.ru_utime + usage.ru_stime


def _decode_only(split: datasets.Split, serialized: list[bytes], batch_size: int) -> Iterator[tf.Tensor]:
  """The limit: every record parsed, its image decoded whole, and dropped."""

  def decode(record: tf.Tensor) -> tf.Tensor:
    return tf.image.decode_jpeg(_parse(split, record)["image"], channels=3, dct_method="INTEGER_ACCURATE")[0, 0]

  records = tf.data.Dataset.from_tensor_slices(serialized).repeat()
  return iter(records.map(decode, tf.data.AUTOTUNE).batch(batch_size).prefetch(tf.data.AUTOTUNE))


def _flax_style(split: datasets.Split, serialized: list[bytes], size: int, batch_size: int) -> Iterator[Any]:
  """What google/flax's examples/imagenet/input_pipeline.py does, written anew.

  TensorFlow's sampled box, crop decoded with the default DCT, bicubic, flip, and float32 normalized on the host.
  """

  def train_image(image: tf.Tensor) -> tf.Tensor:
    begin, shape, _ = tf.image.sample_distorted_bounding_box(
      tf.image.extract_jpeg_shape(image),
      tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
      min_object_covered=0.1,
      aspect_ratio_range=(3 / 4, 4 / 3),
      area_range=(0.08, 1.0),
      max_attempts=10,
      use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], shape[:2]], axis=0)
    pixels = tf.image.decode_and_crop_jpeg(image, window, channels=3)
    pixels = tf.image.resize(pixels, [size, size], method="bicubic")
    pixels = tf.image.random_flip_left_right(tf.ensure_shape(pixels, [size, size, 3]))
    return (pixels - tf.constant([123.675, 116.28, 103.53])) / tf.constant([58.395, 57.12, 57.375])

  def train_example(record: tf.Tensor) -> dict[str, tf.Tensor]:
    example = _parse(split, record)
    return {"image": train_image(example["image"]), "label": example["label"]}

  records = tf.data.Dataset.from_tensor_slices(serialized).repeat().shuffle(16 * batch_size, seed=0)
  examples = records.map(train_example, tf.data.AUTOTUNE)
  options = tf.data.Options()
  options.threading.private_threadpool_size = 48
  options.threading.max_intra_op_parallelism = 1
  examples = examples.batch(batch_size, drop_remainder=True).prefetch(10).with_options(options)
  return (batch["image"] for batch in examples.as_numpy_iterator())


def _memory(data: ConfigDict, source: pipeline.Source, seed: int, batch_size: int) -> list[dict[str, float]]:
  """The resident memory of this process after each of three passes of whole epochs over the training stream."""
  batches, num_records = pipeline.train_batches(data, source, seed=seed, batch_size=batch_size), len(source.records)
  epochs = -(-_IMAGES_PER_PASS // num_records)
  passes = []
  for number in range(1, _PASSES + 1):
    for _ in range(-(-epochs * num_records // batch_size)):
      next(batches)
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    passes.append({"epochs": number * epochs, "resident": round(pages * resource.getpagesize() / 2**20, 1)})
  return passes


def _photometric_ms(seed: int, size: int) -> float:
  """Milliseconds for the photometric distortions of 32 images on JAX's first device, full strength."""
  images, positions = jnp.zeros((32, size, size, 3), jnp.uint8) + 128, jnp.arange(32, dtype=jnp.uint32)
  distort = jax.jit(lambda images, positions: color_distortions.distort(images, positions, seed=seed, strength=1.0))
  distort(images, positions).block_until_ready()
  times = []
  for _ in range(20):
    begin = time.monotonic()
    distort(images, positions).block_until_ready()
    times.append(time.monotonic() - begin)
  return round(1e3 * statistics.median(times), 1)


def _summary(runs: list[tuple[float, float]]) -> dict[str, Any]:
  rates = [rate for rate, _ in runs]
  per_cpu_second = statistics.median(per_cpu for _, per_cpu in runs)
  return {
    "images_per_second": {
      "median": round(statistics.median(rates)),
      "least": round(min(rates)),
      "most": round(max(rates)),
    },
    "images_per_second_and_core": round(statistics.median(rates) / cores.available()),
    "images_per_cpu_second": None if math.isnan(per_cpu_second) else round(per_cpu_second),
  }


def _table(result: dict[str, Any]) -> str:
  lines = [
    f"| {'pipeline':42} | images/s | least - most    | a core | a CPU-second | ours is |",
    f"|{'-' * 44}|---------:|----------------:|-------:|-------------:|--------:|",
  ]
  for name, row in result["pipelines"].items():
    rate, ratio = row["images_per_second"], result["ratios"].get(f"ours / {name}")
    cpu = f"{row['images_per_cpu_second']:,}" if row["images_per_cpu_second"] else ""
    lines.append(
      f"| {name:42} | {rate['median']:8,} | {rate['least']:6,} - {rate['most']:6,} | "
      f"{row['images_per_second_and_core']:6,} | {cpu:>12} | {f'{ratio:.2f}x' if ratio else '':>7} |"
    )
  memory = ", ".join(f"{entry['resident']:,.0f} MB after {entry['epochs']} epochs" for entry in result["memory_mb"])
  return "\n".join(
    [
      *lines,
      "",
      f"{result['data']}, {result['records']} records of {result['mean_bytes']:,} bytes, {result['image_size']} px, "
      f"batches of {result['batch_size']}; {result['cores']} cores of {result['processor']}, load "
      f"{result['load_before']} before; {result['date']}.",
      f"Resident memory of ours: {memory}.",
      f"Photometric distortions of 32 images on the device ({result['device']}): "
      f"{result['photometric_ms_per_batch_of_32']} ms.",
    ]
  )
