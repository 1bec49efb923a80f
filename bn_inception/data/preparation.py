"""Prepares data sets as ArrayRecord: ImageNet from its official archives, sets that TFDS has stored as TFRecord, and
folders of images.

All work in a hidden folder beside their result, `.NAME-VERSION.preparing`, keep there what is finished (a split of the
archives, a file of a converted set; of a folder of images nothing), and rename the complete set into place: a kill at
any moment leaves no half data set, and the same command goes on. Runs of two processes at once exclude each other.
"""

import concurrent.futures
import contextlib
import fcntl
import io
import json
import logging
import os
import pathlib
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator

from array_record.python import array_record_module
from ml_collections import ConfigDict

from bn_inception.data import cores, datasets, own_images
from bn_inception.data.datasets import DataError
from bn_inception.data.host_tf import tf, tfds
from bn_inception.data.records import TFRecordShard, open_records

_log = logging.getLogger(__name__)

_IMAGENET = "imagenet2012:5.1.0"
_ARCHIVES = {"validation": "ILSVRC2012_img_val.tar", "train": "ILSVRC2012_img_train.tar"}  # The short one first.
_FULL_COUNTS = {"validation": 50_000, "train": 1_281_167}
_NOT_OWN = ("imagenet2012", "digits", "fake")  # Names that mean something here.
_PROGRESS_SECONDS = 10.0
_CHUNK_BYTES = 1 << 24  # Of records in memory at a time, in each thread that converts.


def prepare(
  source: pathlib.Path,
  data_dir: pathlib.Path,
  name: str,
  *,
  holdout: float | None = None,
  seed: int = 0,
  on_error: str = "fail",
) -> None:
  """Prepares `name` in `data_dir` from what `source` holds.

  Args:
    source: a folder with the ILSVRC2012 archives or one of them, whose split alone is prepared then; a TFDS data_dir in
      which `name` is stored as TFRecord; or a folder of images (own_images.py).
    data_dir: TFDS data_dir for the result.
    name: NAME[/CONFIG][:VERSION], as `config.data.name`; for the archives 'imagenet2012'.
    holdout, seed: of a folder of images, see `own_images.find`.
    on_error: what to do where one of these cannot be read: "fail", or "skip" it.

  Raises:
    DataError: one sentence on what is missing, cannot be read or does not fit, and what to do.
    KeyboardInterrupt: if interrupted; the same call goes on.
  """
  if not source.is_dir():
    raise DataError(f"--source={source} is not a folder: give the one with the ILSVRC2012 archives or a TFDS data_dir.")
  try:
    if any((source / archive).exists() for archive in _ARCHIVES.values()):
      return _prepare_imagenet(source, data_dir, name)
    if own_images.is_source(source):
      return _prepare_own(source, data_dir, name, holdout, seed, on_error)
    if re.match(r"\w", name) and any(source.glob(f"{re.split('[/:]', name)[0]}/*")):
      return _convert(source, data_dir, name)
  except OSError as error:  # A full disk, a medium that fails.
    raise DataError(
      f"{error.filename or data_dir} cannot be read or written ({error.strerror or error}): when that is mended, the "
      "same command goes on."
    ) from error
  raise DataError(
    f"{source} holds neither {' nor '.join(_ARCHIVES.values())} nor a prepared {name} nor a folder of images for each "
    "class: get the archives from https://image-net.org/download-images (after registration) and give their folder "
    "as --source (for evaluation the one for validation is enough), or that of your own images."
  )


# From the official archives.


def _prepare_imagenet(source: pathlib.Path, data_dir: pathlib.Path, name: str) -> None:
  """Lets TFDS prepare one split after the other, each in a folder of its own, and puts them together."""
  if name not in ("imagenet2012", _IMAGENET):
    raise DataError(f"The archives in {source} are those of {_IMAGENET}, not of '{name}': give --dataset=imagenet2012.")
  target = data_dir / "imagenet2012" / _IMAGENET.partition(":")[2]
  with _working_folder(target, data_dir) as work:
    if work is None:
      return _check_has_all(source, target)
    complete = work / "complete" / target.relative_to(data_dir)
    complete.mkdir(parents=True, exist_ok=True)
    counts, to_do = {}, []
    for split, archive in _ARCHIVES.items():
      there = (source / archive).exists()
      done = _read_json(work / f"{split}.json")
      if done and (not there or done["archive"] == _identity(source / archive)):
        _log.info("%s: finished by an earlier run, %s examples.", split, f"{done['examples']:,}")
        counts[split] = done["examples"]
        continue
      if not there:
        _discard_split(work, complete, split)
        _log.warning(
          "%s: %s is not in %s; going on without this split%s.",
          split,
          archive,
          source,
          ", which training needs and evaluation on 'validation' does not" if split == "train" else "",
        )
        continue
      size = (source / archive).stat().st_size
      if (work / split).exists():
        _log.info("%s: removing what an interrupted run left, this split starts again.", split)
      _discard_split(work, complete, split)
      _log.info("%s: checking %s (%s).", split, archive, _size(size))
      counts[split] = _check_archive(source / archive, split)
      _log.info("%s: %s images in %s.", split, f"{counts[split]:,}", archive)
      if counts[split] != _FULL_COUNTS[split]:
        _log.warning(
          "%s: the full ImageNet has %s images, not %s; going on with what is there.",
          split,
          f"{_FULL_COUNTS[split]:,}",
          f"{counts[split]:,}",
        )
      to_do.append(split)
    # A split is written twice, the first time to be shuffled; that copy shrinks as the second grows.
    _check_space(work, int(1.1 * sum((source / _ARCHIVES[split]).stat().st_size for split in to_do)))
    for split in to_do:
      _prepare_split(source, work, complete, split, counts[split])

    infos = [_read_json(work / f"{split}.json")["dataset_info"] for split in ("train", "validation") if split in counts]
    _write_json(complete / "dataset_info.json", infos[0] | {"splits": [info["splits"][0] for info in infos]})
    _finish(work, target, "imagenet2012", data_dir, counts)


def _check_has_all(source: pathlib.Path, target: pathlib.Path) -> None:
  """Raises DataError if a set that is prepared already lacks a split whose archive there is by now."""
  have = [facts["name"] for facts in _read_json(target / "dataset_info.json")["splits"]]
  for split, archive in _ARCHIVES.items():
    if split not in have and (source / archive).exists():
      raise DataError(
        f"{target} was prepared without {archive} and has no split '{split}': remove it and run this "
        "again, or give another --data_dir."
      )


def _check_archive(path: pathlib.Path, split: str) -> int:
  """The number of images in an archive, which is read from header to header: cheap, and to its end.

  Raises:
    DataError: if the archive is cut off or not one of ILSVRC2012, or if names do not fit the labels TFDS has for them.
  """
  labels = set(tfds.core.tfds_path("datasets/imagenet2012/labels.txt").read_text().split())
  again = f"get it again from https://image-net.org/download-images, or give the right --source: {path}"
  try:
    with path.open("rb") as file:
      # A whole archive ends in empty blocks. Python's tarfile takes one that is cut within a header for a whole one.
      file.seek(-min(1024, path.stat().st_size), os.SEEK_END)
      if any(file.read()):
        raise tarfile.ReadError("its end is missing")
    with tarfile.open(path, "r:") as archive:
      if split == "validation":
        members = sorted(archive.getmembers(), key=lambda member: member.name)
        # TFDS gives label k to the k-th name: one missing in between would shift all labels after it.
        for number, member in enumerate(members, 1):
          if member.name != f"ILSVRC2012_val_{number:08d}.JPEG":
            raise DataError(
              f"Image {number} of the validation archive is called {member.name}, so labels would not fit: {again}."
            )
        count = sum(member.isfile() for member in members)
      else:
        count = 0
        for member in archive:
          if pathlib.PurePath(member.name).stem not in labels or not member.name.endswith(".tar"):
            raise DataError(f"The training archive holds {member.name}, which is no class of ILSVRC2012: {again}.")
          with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as images:
            count += sum(image.isfile() for image in images)
  except (tarfile.TarError, OSError) as error:
    raise DataError(f"An archive is damaged or cut off ({error}): {again}.") from error
  if not count:
    raise DataError(f"An archive holds no image: {again}.")
  return count


def _prepare_split(source: pathlib.Path, work: pathlib.Path, complete: pathlib.Path, split: str, count: int) -> None:
  """Runs the unmodified TFDS builder on one archive; its files go to `complete`, what TFDS says of them to a JSON."""
  folder = work / split
  archives = folder / "archives"
  archives.mkdir(parents=True)
  (archives / _ARCHIVES[split]).symlink_to((source / _ARCHIVES[split]).absolute())
  if split == "train":
    # The builder looks into the validation archive in any case: it is shown one with a single image.
    with tarfile.open(archives / _ARCHIVES["validation"], "w:") as one:
      image = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
      content = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8)).numpy()
      image.size = len(content)
      one.addfile(image, io.BytesIO(content))
  identity = _identity(source / _ARCHIVES[split])
  tfds.disable_progress_bar()
  with _progress(split, folder, (source / _ARCHIVES[split]).stat().st_size):
    builder = tfds.builder(_IMAGENET, data_dir=folder)
    with contextlib.redirect_stdout(None):  # TFDS prints that it downloads.
      try:
        builder.download_and_prepare(
          file_format="array_record",
          download_config=tfds.download.DownloadConfig(manual_dir=archives, try_download_gcs=False),
        )
      except RuntimeError as error:  # What ArrayRecord's writer makes of an OSError.
        raise OSError(None, str(error).partition(";")[0], str(folder)) from error
  prepared = pathlib.Path(builder.data_dir)
  info = _read_json(prepared / "dataset_info.json")
  info["splits"] = [facts for facts in info["splits"] if facts["name"] == split]
  examples = sum(map(int, info["splits"][0]["shardLengths"]))
  if examples != count:
    raise DataError(f"TFDS prepared {examples:,} examples of the {count:,} in {_ARCHIVES[split]}: run this again.")
  for path in prepared.iterdir():
    if path.name.startswith(f"imagenet2012-{split}.") or path.name in ("features.json", "label.labels.txt"):
      path.replace(complete / path.name)
  _write_json(work / f"{split}.json", {"examples": examples, "archive": identity, "dataset_info": info})
  shutil.rmtree(folder)
  _log.info("%s: %s examples prepared.", split, f"{examples:,}")


def _identity(archive: pathlib.Path) -> list[int]:
  """Changes if the archive does: its length and the time of its last change."""
  return [archive.stat().st_size, archive.stat().st_mtime_ns]


def _discard_split(work: pathlib.Path, complete: pathlib.Path, split: str) -> None:
  (work / f"{split}.json").unlink(missing_ok=True)
  for path in complete.glob(f"imagenet2012-{split}.*"):
    path.unlink()
  shutil.rmtree(work / split, ignore_errors=True)


@contextlib.contextmanager
def _progress(split: str, folder: pathlib.Path, total: int) -> Iterator[None]:
  """Logs every few seconds how much TFDS has read (into files to be shuffled) and written."""
  stopped = threading.Event()

  def report() -> None:
    read = 0
    while not stopped.wait(_PROGRESS_SECONDS):
      sizes = {"tmp": 0, "array_record": 0}
      for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # Removed meanwhile.
          kind = "tmp" if path.suffix == ".tmp" else "array_record" if ".array_record" in path.name else None
          if kind:
            sizes[kind] += path.stat().st_size
      read = max(read, sum(sizes.values()))
      _log.info("%s: %s read, %s written, of %s.", split, _size(read), _size(sizes["array_record"]), _size(total))

  thread = threading.Thread(target=report, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stopped.set()
    thread.join()


# From TFRecord.


def _convert(source: pathlib.Path, data_dir: pathlib.Path, name: str) -> None:
  """Copies a prepared set record for record, several files at a time."""
  folder = datasets.find_prepared(source, name)
  relative = folder.relative_to(source)
  target = data_dir / relative
  if target.resolve() == folder.resolve():
    raise DataError(f"{folder} is both source and result: give another --data_dir.")
  info = _read_json(folder / "dataset_info.json")
  if info.get("fileFormat", "tfrecord") != "tfrecord":
    raise DataError(f"{folder} is stored as {info['fileFormat']}, not as TFRecord: there is nothing to convert.")
  title = f"{relative.parent.as_posix()}:{relative.name}"
  splits = [
    datasets.open_split(ConfigDict({"name": title, "dir": str(source)}), split["name"]) for split in info["splits"]
  ]
  with _working_folder(target, data_dir) as work:
    if work is None:
      return
    complete = work / "complete" / relative
    complete.mkdir(parents=True, exist_ok=True)
    for partial in complete.glob("*.partial"):
      partial.unlink()
    jobs = []
    for split in splits:
      for path, length in zip(split.files, split.file_lengths):
        # NAME-SPLIT.tfrecord-00000-of-00001
        prefix, _, suffix = os.path.basename(path).rpartition(".tfrecord")
        jobs.append((pathlib.Path(path), complete / f"{prefix}.array_record{suffix}", length))
    to_do = [job for job in jobs if not job[1].exists()]  # A file has its name only when it is complete.
    total = sum(path.stat().st_size for path, _, _ in to_do)
    _log.info(
      "%s: %d files to convert (%s)%s.",
      title,
      len(to_do),
      _size(total),
      f", {len(jobs) - len(to_do)} finished by an earlier run" if len(to_do) < len(jobs) else "",
    )
    _check_space(work, int(1.05 * total))
    _run_parallel(_convert_file, to_do, total)
    for path in folder.iterdir():
      if path.is_file() and ".tfrecord" not in path.name:
        shutil.copyfile(path, complete / path.name)
    info["fileFormat"] = "array_record"
    info.pop("alternativeFileFormats", None)
    for facts in info["splits"]:
      if "filepathTemplate" in facts:
        facts["filepathTemplate"] = facts["filepathTemplate"].replace("tfrecord", "array_record")
    _write_json(complete / "dataset_info.json", info)
    _finish(work, target, title, data_dir, {split.split: split.num_examples for split in splits})


def _run_parallel(convert: Callable, jobs: list[tuple[pathlib.Path, pathlib.Path, int]], total: int) -> None:
  """Calls convert(source, target, length, stopped) for every job in threads; logs progress."""
  stopped = threading.Event()
  done_bytes, started, reported = 0, time.monotonic(), time.monotonic()
  # Threads are enough: reading, checksums and writing all happen outside Python's lock.
  with concurrent.futures.ThreadPoolExecutor(cores.available()) as pool:
    try:
      futures = {pool.submit(convert, *job, stopped): job[0] for job in jobs}
      for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
        size = futures[future].stat().st_size
        future.result()
        done_bytes += size
        now = time.monotonic()
        if now - reported >= _PROGRESS_SECONDS or number == len(jobs):
          reported = now
          speed = done_bytes / (now - started)
          _log.info("%d of %d files, %s of %s, %s/s.", number, len(jobs), _size(done_bytes), _size(total), _size(speed))
    except BaseException:
      stopped.set()
      pool.shutdown(cancel_futures=True)
      raise


def _convert_file(source: pathlib.Path, target: pathlib.Path, length: int, stopped: threading.Event) -> None:
  """Copies one file and reads the copy back; `target` appears when that has agreed."""
  partial = target.with_name(target.name + ".partial")
  try:
    shard = TFRecordShard(str(source))
  except ValueError as error:
    raise DataError(f"{source} is damaged: {error}; restore it or prepare the data set again.") from error
  if len(shard) != length:
    raise DataError(f"{source} holds {len(shard)} records instead of {length}: restore it or prepare the set again.")

  def chunks() -> Iterator[tuple[int, list[bytes]]]:
    per_chunk = max(1, _CHUNK_BYTES // max(1, shard.longest))
    for first in range(0, length, per_chunk):
      if stopped.is_set():
        raise KeyboardInterrupt
      rows = range(first, min(first + per_chunk, length))
      try:
        yield first, shard.read(rows)
      except ValueError as error:
        raise DataError(
          f"A record in {first} to {rows[-1]} of {source} is damaged ({error}): restore the file first."
        ) from error

  # As TFDS writes it: one record in each group, so that each can be read alone.
  writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
  try:
    for _, records in chunks():
      for record in records:
        writer.write(record)
    writer.close()
  except RuntimeError as error:  # What ArrayRecord's writer makes of an OSError.
    raise OSError(None, str(error).partition(";")[0], str(partial)) from error
  reader = array_record_module.ArrayRecordReader(str(partial))
  for first, records in chunks():
    if reader.num_records() != length or reader.read(first, first + len(records)) != records:
      raise DataError(f"{partial} reads back otherwise than it was written: check the disk.")
  reader.close()
  with partial.open("rb") as file:
    os.fsync(file.fileno())
  partial.replace(target)


# From a folder of images.


def _prepare_own(
  source: pathlib.Path, data_dir: pathlib.Path, name: str, holdout: float | None, seed: int, on_error: str
) -> None:
  match = re.fullmatch(r"([a-z][a-z0-9_]*)(?::(\d+\.\d+\.\d+))?", name)
  if not match or match[1] in _NOT_OWN:
    raise DataError(
      f"'{name}' is no name for the images in {source}: give --dataset=NAME or NAME:1.0.0, of small letters, "
      f"digits and _, and none of {', '.join(_NOT_OWN)}."
    )
  name, version = match[1], match[2] or "1.0.0"
  target = data_dir / name / version
  with _working_folder(target, data_dir) as work:
    if work is None:
      return
    shutil.rmtree(work / "complete", ignore_errors=True)
    found = own_images.find(source, holdout, seed)
    total = sum(map(len, found.splits.values()))
    _log.info("%s: checking %s images of %d classes.", source, f"{total:,}", len(found.class_names))
    sound = own_images.check(found)
    counts = {split: len(examples) for split, examples in sound.splits.items()}
    if (bad := total - sum(counts.values())) and on_error == "fail":
      raise DataError(
        f"{source} has {bad} bad image{'s'[: bad > 1]}, named above: mend or remove {'them' if bad > 1 else 'it'}"
        ", or give --on_error=skip."
      )
    for label, class_name in enumerate(found.class_names):
      if not any(example.label == label for example in sound.splits["train"]):
        raise DataError(f"No image for training is left of the class '{class_name}': add some.")
    if empty := [split for split, count in counts.items() if not count]:
      raise DataError(f"No image of the {empty[0]} split is left: add some.")
    paths = [example.path for examples in sound.splits.values() for example in examples]
    _check_space(work, int(1.2 * sum(path.stat().st_size for path in paths)))
    own_images.write(sound, source, name, version, work / "complete")
    _log.info("%s", found.description)
    _finish(work, target, f"{name}:{version}", data_dir, counts)
    _log.info("Train on it: --config.data.name=%s --config.data.num_classes=%d", name, len(found.class_names))


# All.


@contextlib.contextmanager
def _working_folder(target: pathlib.Path, data_dir: pathlib.Path) -> Iterator[pathlib.Path | None]:
  """The folder to prepare `target` in, for this process alone; None if there is nothing to do."""
  work = data_dir / f".{'-'.join(target.relative_to(data_dir).parts)}.preparing"
  if (target / "dataset_info.json").exists():
    _log.info("%s is prepared already; remove it to prepare it again.", target)
    shutil.rmtree(work, ignore_errors=True)
    yield None
    return
  if target.is_dir() and any(target.iterdir()):
    raise DataError(f"{target} holds something that is not a whole data set: remove it.")
  try:
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("w")
  except OSError as error:
    raise DataError(f"Cannot write to {data_dir} ({error.strerror}): give another --data_dir.") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise DataError(f"{target} is being prepared by another process: wait for it to end.") from error
    yield work


def _finish(
  work: pathlib.Path, target: pathlib.Path, name: str, data_dir: pathlib.Path, counts: dict[str, int]
) -> None:
  """Opens every file of a complete set, compares the counts, and renames it into place."""
  for split, count in counts.items():
    opened = datasets.open_split(ConfigDict({"name": name, "dir": str(work / "complete")}), split)
    if len(open_records(opened)) != count:  # It has checked each file against the data set's own statement.
      problem = f"{opened.num_examples:,} {split} examples instead of {count:,}"
      raise DataError(f"{work} has {problem}: remove it and run this again.")
    _log.info("%s: %s examples in %d files.", split, f"{count:,}", len(opened.files))
  target.parent.mkdir(parents=True, exist_ok=True)
  (work / "complete" / target.relative_to(data_dir)).rename(target)
  shutil.rmtree(work)
  _log.info("%s is ready: --config.data.dir=%s", target, data_dir)


def _check_space(folder: pathlib.Path, needed: int) -> None:
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise DataError(
      f"{folder.parent} has {_size(free)} free, and {_size(needed)} are needed: choose another --data_dir."
    )


def _read_json(path: pathlib.Path) -> dict:
  return json.loads(path.read_text()) if path.exists() else {}


def _write_json(path: pathlib.Path, content: dict) -> None:
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(content, indent=2))
  partial.replace(path)


def _size(count: float) -> str:
  for unit in ("bytes", "kB", "MB"):
    if count < 1000:
      return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
    count /= 1000
  return f"{count:,.1f} GB"
