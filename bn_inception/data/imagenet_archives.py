"""Prepares ImageNet from its official archives, one split after the other, with the unmodified builder of TFDS."""

import contextlib
import io
import logging
import os
import pathlib
import shutil
import tarfile
import threading
from collections.abc import Iterator

from bn_inception.data import working_folder
from bn_inception.data.datasets import DataError
from bn_inception.data.host_tf import tf, tfds

_log = logging.getLogger(__name__)

_IMAGENET = "imagenet2012:5.1.0"
ARCHIVES = {"validation": "ILSVRC2012_img_val.tar", "train": "ILSVRC2012_img_train.tar"}  # The short one first.
_FULL_COUNTS = {"validation": 50_000, "train": 1_281_167}


def prepare(source: pathlib.Path, data_dir: pathlib.Path, name: str) -> None:
  """Lets TFDS prepare one split after the other, each in a folder of its own, and puts them together.

  Args:
    source: the folder with the archives, or with one of them.
    data_dir: TFDS data_dir for the result.
    name: 'imagenet2012', with its version or without.

  Raises:
    DataError: one sentence on an archive that is damaged, another name, or too little room, and what to do.
  """
  if name not in ("imagenet2012", _IMAGENET):
    raise DataError(f"The archives in {source} are those of {_IMAGENET}, not of '{name}': give --dataset=imagenet2012.")
  target = data_dir / "imagenet2012" / _IMAGENET.partition(":")[2]
  with working_folder.exclusive(target, data_dir) as work:
    if work is None:
      return _check_has_all(source, target)
    complete = work / "complete" / target.relative_to(data_dir)
    complete.mkdir(parents=True, exist_ok=True)
    counts, to_do = {}, []
    for split, archive in ARCHIVES.items():
      there = (source / archive).exists()
      done = working_folder.read_json(work / f"{split}.json")
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
      _log.info("%s: checking %s (%s).", split, archive, working_folder.size_text(size))
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
    working_folder.check_space(work, int(1.1 * sum((source / ARCHIVES[split]).stat().st_size for split in to_do)))
    for split in to_do:
      prepare_split(source, work, complete, split, counts[split])

    infos = [
      working_folder.read_json(work / f"{split}.json")["dataset_info"]
      for split in ("train", "validation")
      if split in counts
    ]
    working_folder.write_json(
      complete / "dataset_info.json", infos[0] | {"splits": [info["splits"][0] for info in infos]}
    )
    working_folder.finish(work, target, "imagenet2012", data_dir, counts)


def _check_has_all(source: pathlib.Path, target: pathlib.Path) -> None:
  """Raises DataError if a set that is prepared already lacks a split whose archive there is by now."""
  have = [facts["name"] for facts in working_folder.read_json(target / "dataset_info.json")["splits"]]
  for split, archive in ARCHIVES.items():
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


def prepare_split(source: pathlib.Path, work: pathlib.Path, complete: pathlib.Path, split: str, count: int) -> None:
  """Runs the unmodified TFDS builder on one archive; its files go to `complete`, what TFDS says of them to a JSON."""
  folder = work / split
  archives = folder / "archives"
  archives.mkdir(parents=True)
  (archives / ARCHIVES[split]).symlink_to((source / ARCHIVES[split]).absolute())
  if split == "train":
    # The builder looks into the validation archive in any case: it is shown one with a single image.
    with tarfile.open(archives / ARCHIVES["validation"], "w:") as substitute:
      image = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
      content = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8)).numpy()
      image.size = len(content)
      substitute.addfile(image, io.BytesIO(content))
  identity = _identity(source / ARCHIVES[split])
  tfds.disable_progress_bar()
  with _progress(split, folder, (source / ARCHIVES[split]).stat().st_size):
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
  info = working_folder.read_json(prepared / "dataset_info.json")
  info["splits"] = [facts for facts in info["splits"] if facts["name"] == split]
  examples = sum(map(int, info["splits"][0]["shardLengths"]))
  if examples != count:
    raise DataError(f"TFDS prepared {examples:,} examples of the {count:,} in {ARCHIVES[split]}: run this again.")
  for path in prepared.iterdir():
    if path.name.startswith(f"imagenet2012-{split}.") or path.name in ("features.json", "label.labels.txt"):
      path.replace(complete / path.name)
  working_folder.write_json(work / f"{split}.json", {"examples": examples, "archive": identity, "dataset_info": info})
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
    while not stopped.wait(working_folder.PROGRESS_SECONDS):
      sizes = {"tmp": 0, "array_record": 0}
      for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # Removed meanwhile.
          kind = "tmp" if path.suffix == ".tmp" else "array_record" if ".array_record" in path.name else None
          if kind:
            sizes[kind] += path.stat().st_size
      read = max(read, sum(sizes.values()))
      _log.info(
        "%s: %s read, %s written, of %s.",
        split,
        working_folder.size_text(read),
        working_folder.size_text(sizes["array_record"]),
        working_folder.size_text(total),
      )

  thread = threading.Thread(target=report, daemon=True)
  thread.start()
  try:
    yield
  finally:
    stopped.set()
    thread.join()
