"""Whatever bytes a user brings: damaged, a file is refused in one sentence; unusual but valid, an image is read.

Each file here is a sound one, which is read as a check, with changes that Hypothesis draws. A reader may find it sound
still, or refuse it with the project's own error; it may not raise anything else, or take more memory than the file
can stand for.
"""

import dataclasses
import io
import json
import lzma
import pickle
import struct
import tracemalloc
import zipfile

import cv2
import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from bn_inception import config_keys, models, release, run_data, run_directory
from bn_inception.config_dict import ConfigDict
from bn_inception.configs import mnist, versions
from bn_inception.data import datasets, evaluation_crops, train_distortions
from bn_inception.data.host_tf import tf
from bn_inception.errors import DataError, UserError
from bn_inception.evaluators import predictions_file
from bn_inception.release import labels, source_file
from bn_inception.release.peers.caffe import file as caffe_file
from bn_inception.release.peers.mxnet import file as mxnet_file
from bn_inception.release.peers.pytorch import file as torch_file
from bn_inception.release.peers.tensorflow import file as tensorflow_file

MAX_BYTES = 2**26  # Of memory, for files of at most a few kB.


def examples(count):
  """Settings with which every run draws the same examples."""
  return settings(
    max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
  )


# Each property with few examples, and with many.
COUNTS = pytest.mark.parametrize("count", [12, pytest.param(1000, marks=pytest.mark.slow)])


# ------------------------------------------------------------------------------------------------------------- damage

SPECIAL = [
  bytes(8),
  b"\xff" * 8,
  b"\x7f" + b"\xff" * 7,
  b"\xff" * 7 + b"\x7f",
  b"\xff\xff\xff\x7f",
  b"\0\0\0\x80",
  b"\0",
  b"\n",
  b"{",
  b'"',
  b"NaN",
  b"1e999",
  b"\xff\xd8",
  b"9" * 400,
]
EDITS = st.lists(
  st.tuples(
    st.sampled_from(["replace", "insert", "delete", "double", "cut"]),
    st.floats(0, 1),
    st.sampled_from(SPECIAL) | st.binary(min_size=1, max_size=9),
  ),
  min_size=1,
  max_size=4,
)


def damaged(content, edits):
  """A file with some of its bytes replaced, removed, doubled or put in between, or cut off."""
  content = bytearray(content)
  for kind, place, value in edits:
    place = int(place * len(content))
    end = place + len(value)
    match kind:
      case "replace":
        content[place:end] = value
      case "insert":
        content[place:place] = value
      case "delete":
        del content[place:end]
      case "double":
        content[end:end] = content[place:end]
      case "cut":
        del content[place:]
  return bytes(content)


def read_or_refuse(read, *kinds):
  """Calls `read`; what it raises must be of `kinds`, in one sentence."""
  tracemalloc.start()
  try:
    read()
  except kinds as error:
    assert "\n" not in str(error) and 20 < len(str(error)) < 1500, str(error)
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert peak < MAX_BYTES


# ------------------------------------------------------------------------------------------ checkpoints of the peers


TENSORS = {"conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), "bn.count": np.array(3, np.int64)}


def torch_zip():
  return torch_file.write(TENSORS)


def torch_old():
  with zipfile.ZipFile(io.BytesIO(torch_zip())) as archive:
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    parts += [archive.read("archive/data.pkl"), pickle.dumps(["0", "1"], 2)]
    return b"".join(parts + [struct.pack("<q", tensor.size) + tensor.tobytes() for tensor in TENSORS.values()])


def mxnet_params():
  arrays = b"".join(
    struct.pack("<Iii", 0xF993FAC9, 0, tensor.ndim or 1)
    + struct.pack(f"<{tensor.ndim or 1}q", *(tensor.shape or (1,)))
    + struct.pack("<iii", 1, 0, number)
    + tensor.tobytes()
    for number, tensor in zip((0, 6), TENSORS.values())
  )
  names = b"".join(struct.pack("<Q", len(name)) + name.encode() for name in TENSORS)
  return struct.pack("<QQQ", 0x112, 0, 2) + arrays + struct.pack("<Q", 2) + names


def caffemodel():
  def field(number, content):
    return (
      bytes([*([number << 3 | 2] if number < 16 else [number << 3 & 0x7F | 0x82, number >> 4]), len(content)]) + content
    )

  blob = field(7, field(1, bytes([2, 3]))) + field(5, np.arange(6, dtype=np.float32).tobytes())
  old = b"\x08\x01\x10\x02\x18\x01\x20\x01" + field(5, bytes(8))
  return (
    field(1, b"net")
    + field(100, field(1, b"conv") + field(2, b"Convolution") + field(7, blob))
    + field(2, field(4, b"old") + field(6, old))
  )


def tensorflow_v1(path):
  tf.raw_ops.Save(filename=str(path), tensor_names=list(TENSORS), data=list(map(tf.constant, TENSORS.values())))
  return path.read_bytes()


def test_the_files_that_are_damaged_are_sound(tmp_path):
  assert torch_file.read(torch_zip()).keys() == torch_file.read(torch_old()).keys() == TENSORS.keys()
  assert mxnet_file.read(mxnet_params()).keys() == TENSORS.keys()
  assert caffe_file.read(caffemodel())["conv:0"].shape == (2, 3) and "old:0" in caffe_file.read(caffemodel())
  assert tensorflow_file.read(tmp_path / "v1", tensorflow_v1(tmp_path / "v1")).keys() == TENSORS.keys()


@COUNTS
@pytest.mark.parametrize(
  "content, read",
  [
    (torch_zip(), torch_file.read),
    (torch_old(), torch_file.read),
    (mxnet_params(), mxnet_file.read),
    (caffemodel(), caffe_file.read),
  ],
  ids=["torch zip", "torch old", "mxnet", "caffe"],
)
def test_a_damaged_checkpoint_is_refused(tmp_path, content, read, count):
  path = tmp_path / "net"

  @examples(count)
  @given(EDITS)
  def check(edits):
    changed = damaged(content, edits)
    read_or_refuse(lambda: read(changed), release.ReleaseError)
    path.write_bytes(changed)
    with pytest.raises(release.ReleaseError):  # Whatever it holds, it is no network.
      release.read(path)

  check()


@COUNTS
def test_a_pickle_of_any_instructions_is_refused(count):
  """Well-formed instructions in any order get further than damaged ones."""
  names = [
    "collections\nOrderedDict",
    "torch._utils\n_rebuild_tensor_v2",
    "torch\nFloatStorage",
    "argparse\nNamespace",
    "numpy\ndtype",
    "os\nsystem",
    "builtins\neval",
  ]
  instructions = st.sampled_from(
    [
      b"(",
      b")",
      b"]",
      b"}",
      b"N",
      b"\x88",
      b"t",
      b"l",
      b"d",
      b"a",
      b"e",
      b"s",
      b"u",
      b"R",
      b"Q",
      b"b",
      b"\x81",
      b"\x85",
      b"\x86",
      b"\x87",
      b"0",
      b"1",
      b"2",
      b"q\0",
      b"h\0",
      b"h\1",
      b"\x94",
      b"K\1",
      b"K\0",
      b"J\xff\xff\xff\xff",
      b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
      b"X\1\0\0\0a",
      b"X\7\0\0\0storage",
      b"\x93",
      b"i",
      b"o",
      *(f"c{name}\n".encode() for name in names),
      b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0000X\3\0\0\0cpuK\1tQ",
    ]
  )

  @examples(10 * count)
  @given(st.lists(instructions, max_size=25))
  def check(program):
    stream = b"\x80\x02" + b"".join(program) + b"."
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
      archive.writestr("a/data.pkl", stream)
      archive.writestr("a/data/0", bytes(4))
    read_or_refuse(lambda: torch_file.read(content.getvalue()), release.ReleaseError)

  check()


@COUNTS
@pytest.mark.parametrize("version", [1, 2])
def test_a_damaged_tensorflow_checkpoint_is_refused(tmp_path, version, count):
  if version == 1:
    files = {tmp_path / "net": tensorflow_v1(tmp_path / "net")}
  else:
    tf.raw_ops.SaveV2(
      prefix=str(tmp_path / "net"),
      tensor_names=list(TENSORS),
      shape_and_slices=["", ""],
      tensors=list(map(tf.constant, TENSORS.values())),
    )
    files = {path: path.read_bytes() for path in sorted(tmp_path.iterdir())}

  @examples(count)
  @given(st.lists(EDITS, min_size=len(files), max_size=len(files)))
  def check(edits):
    for (path, content), changes in zip(files.items(), edits):
      path.write_bytes(damaged(content, changes))
    for path in files:
      read_or_refuse(lambda path=path: tensorflow_file.read(path, path.read_bytes()), release.ReleaseError)
      with pytest.raises(release.ReleaseError):
        release.read(path)

  check()


@COUNTS
def test_a_damaged_graph_is_refused(tmp_path, count):
  path = tmp_path / "net-symbol.json"
  tree = {
    "nodes": [
      {"op": "null", "name": "data", "inputs": []},
      {"op": "Convolution", "name": "c", "attr": {"kernel": "(3, 3)"}, "inputs": [[0, 0, 0]]},
    ],
    "heads": [],
  }
  path.write_text(json.dumps(tree))
  assert len(mxnet_file.read_symbol(path)) == 2

  @examples(count)
  @given(EDITS, changed_trees(tree))
  def check(edits, changed):
    for content in (damaged(json.dumps(tree).encode(), edits), json.dumps(changed).encode()):
      path.write_bytes(content)
      read_or_refuse(lambda: mxnet_graph_of(path), release.ReleaseError)

  check()


def mxnet_graph_of(path):
  nodes = mxnet_file.read_symbol(path)
  for node in nodes:
    node.value("kernel", None)


@COUNTS
def test_damaged_compression_is_refused(tmp_path, count):
  path = tmp_path / "net.xz"

  @examples(count)
  @given(EDITS)
  def check(edits):
    path.write_bytes(damaged(lzma.compress(bytes(1000) + caffemodel()), edits))
    read_or_refuse(lambda: source_file.read(path), release.ReleaseError)

  check()


# -------------------------------------------------------------------------------- the project's own files


VALUES = st.recursive(
  st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.just("9" * 5000),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
  max_leaves=5,
)


@st.composite
def changed_trees(draw, tree):
  """A JSON tree with a value in it, at any depth, replaced or removed, or a key added."""
  tree = json.loads(json.dumps(tree))
  for _ in range(draw(st.integers(1, 2))):
    node = tree
    while True:
      keys = sorted(node) if isinstance(node, dict) else range(len(node))
      if not keys:
        break
      key = draw(st.sampled_from(keys))
      if isinstance(node[key], (dict, list)) and draw(st.booleans()):
        node = node[key]
        continue
      if isinstance(node, dict) and draw(st.integers(0, 3)) == 0:
        node[draw(st.text(max_size=5))] = node[key] if draw(st.booleans()) else draw(VALUES)
      if draw(st.integers(0, 3)):
        node[key] = draw(VALUES)
      else:
        del node[key]
      break
  return tree


def deep(depth):
  """JSON of nested objects, deeper than Python's own stack."""
  return b'{"a":' * depth + b"1" + b"}" * depth


def small_release():
  config = mnist.get_config("bn").copy_and_resolve_references()
  config.model.hidden_units, config.eval.sigmoid_input_units = 4, ()
  config.data.image_size = config.data.eval_resize = 4
  config.release = ConfigDict(
    {
      "statistics": "running",
      "source": "a test",
      "classes": "digits",
      "published": "none",
      "base_model": "own/own",
      "license": "unknown",
    }
  )
  model = models.build(config)
  variables = model.init(jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32), train=False)
  return release.Release(config, jax.tree.map(np.asarray, variables), tuple("0123456789"))


@pytest.fixture(scope="module", name="whole")
def fixture_whole(tmp_path_factory):
  path = tmp_path_factory.mktemp("release") / "net"
  release.write(small_release(), path)
  return {file.name: file.read_bytes() for file in path.iterdir()}


@COUNTS
@pytest.mark.parametrize(
  "name", ["model.safetensors", "config.json", "preprocessing.json", "labels.txt", "metrics.json"]
)
def test_a_damaged_release_is_refused(tmp_path, whole, name, count):
  for file, content in whole.items():
    (tmp_path / file).write_bytes(content)
  release.read(tmp_path)
  tree = json.loads(whole[name]) if name.endswith(".json") else {}
  if name == "metrics.json":
    tree = {"top1": 0.5, "top5": 1.0, "loss": 1.0, "count": 3, "data": "a", "command": "b"}
  (tmp_path / name).write_bytes(deep(20_000))
  read_or_refuse(lambda: release.read(tmp_path), release.ReleaseError)

  @examples(max(5, count // 5))  # A network is built for each.
  @given(EDITS, changed_trees(tree))
  def check(edits, changed):
    for content in (damaged(whole[name], edits), json.dumps(changed).encode()):
      (tmp_path / name).write_bytes(content)
      read_or_refuse(lambda: release.read(tmp_path), release.ReleaseError)

  check()


@COUNTS
def test_a_damaged_list_of_names_is_refused(tmp_path, count):
  path = tmp_path / "labels.txt"

  @examples(10 * count)
  @given(EDITS)
  def check(edits):
    path.write_bytes(damaged("tench\ngoldfish\ngreat white shark\nhahn\né\n".encode(), edits))
    read_or_refuse(lambda: labels.read(path, 5), release.ReleaseError)

  check()


@COUNTS
def test_a_damaged_run_is_refused(tmp_path, count):
  config = mnist.get_config("bn")
  lines = [{"step": 1, "paper_steps": 1.0, "train/loss": 0.5}, {"step": 2, "paper_steps": 2.0, "train/loss": "inf"}]
  typed = config_keys.parse(config).data
  split = dataclasses.replace(
    datasets.open_split(dataclasses.replace(typed, name="fake"), typed.eval_split), digest="aa"
  )
  of_split = {"name": split.name, "split": split.split, "examples": 3, "digest": split.digest}
  data = {"asked": typed.name, "train_split": of_split, "eval_split": of_split}

  def read_data():
    run_data.held(typed, tmp_path)
    try:
      run_data.check(typed, tmp_path, eval_split=split)
    except DataError as error:  # Of another digest.
      assert split.name in str(error)

  files = {
    "config.json": (json.loads(config.to_json()), lambda: run_directory.read_config(tmp_path)),
    "status.json": ({"status": "running", "step": 1, "saved_step": 1}, lambda: run_directory.saved_step(tmp_path)),
    "metrics.jsonl": (lines, lambda: run_directory.drop_metrics_after(tmp_path, 1)),
    "data.json": (data, read_data),
  }

  def as_bytes(tree):
    return (lines_of(tree) if name.endswith("l") and isinstance(tree, list) else json.dumps(tree) + "\n").encode()

  @examples(count)
  @given(EDITS, st.data())
  def check(edits, data):
    for content in (damaged(as_bytes(tree), edits), as_bytes(data.draw(changed_trees(tree)))):
      (tmp_path / name).write_bytes(content)
      read_or_refuse(read, UserError, versions.VersionError)

  for name, (tree, read) in files.items():
    (tmp_path / name).write_bytes(as_bytes(tree))
    read()
    (tmp_path / name).write_bytes(deep(20_000) + b"\n" + as_bytes(tree))
    read_or_refuse(read, UserError)
    check()
    (tmp_path / name).unlink()


def lines_of(trees):
  return "".join(json.dumps(tree) + "\n" for tree in trees)


@COUNTS
def test_damaged_predictions_are_refused(tmp_path, count):
  request = {"data": "own:1.0.0", "data_digest": "a"}
  lines = [
    {"id": "a", "label": 1, "top5": [1, 0], "probability": [0.9, 0.1], "label_probability": 0.9},
    {"id": "b", "label": None, "skipped": True},
    {"id": "c", "label": [0, 1], "top5": [], "probability": [], "label_probability": 0.0},
  ]
  as_bytes = lambda trees: lines_of(trees).encode()
  predictions_file.resume(tmp_path, request)

  def read():
    done = predictions_file.resume(tmp_path, request)
    result = predictions_file.metrics(tmp_path, done) if done else {}
    assert all(isinstance(value, (int, float)) for value in result.values())

  (tmp_path / predictions_file.PREDICTIONS).write_bytes(as_bytes(lines))
  read()

  @examples(3 * count)
  @given(EDITS, changed_trees(lines), changed_trees(request))
  def check(edits, changed, changed_request):
    for content in (damaged(as_bytes(lines), edits), as_bytes(changed) if isinstance(changed, list) else b""):
      (tmp_path / predictions_file.PREDICTIONS).write_bytes(content)
      read_or_refuse(read, UserError)
    (tmp_path / predictions_file.REQUEST).write_text(json.dumps(changed_request))
    read_or_refuse(read, UserError)
    (tmp_path / predictions_file.REQUEST).write_text(json.dumps(request))

  check()


# ------------------------------------------------------------------------------------------------------------- images


def random_crops(encoded, channels, position=0):
  out = np.zeros((4, 8, 8, channels), np.uint8)
  train_distortions.random_crops(
    [encoded] * 4,
    np.arange(position, position + 4),
    out,
    seed=0,
    crop_area=(0.08, 1.0),
    crop_aspect=(3 / 4, 4 / 3),
    flip=True,
    interpolation="random",
  )
  return out


def decoded(encoded, channels):
  """The whole image as evaluation decodes it, or None."""
  try:
    return evaluation_crops.decode(tf.constant(encoded), channels=channels).numpy()
  except tf.errors.InvalidArgumentError:
    return None


def assert_training_reads_as_evaluation(encoded, channels, position):
  """The crops are those of a PNG file of the pixels that evaluation finds, from the same boxes."""
  pixels = decoded(encoded, channels)
  if pixels is None:
    return
  as_png = cv2.imencode(".png", pixels[..., ::-1] if channels == 3 else pixels)[1].tobytes()
  np.testing.assert_array_equal(random_crops(encoded, channels, position), random_crops(as_png, channels, position))


def jpeg(pixels, sampling, progressive, restart, optimize):
  """By OpenCV, which knows more samplings than PIL."""
  flags = {
    cv2.IMWRITE_JPEG_PROGRESSIVE: int(progressive),
    cv2.IMWRITE_JPEG_RST_INTERVAL: restart,
    cv2.IMWRITE_JPEG_OPTIMIZE: int(optimize),
  }
  flags |= {cv2.IMWRITE_JPEG_SAMPLING_FACTOR: sampling} if pixels.ndim == 3 else {}
  return cv2.imencode(".jpg", pixels, [number for pair in flags.items() for number in pair])[1].tobytes()


SAMPLINGS = [
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
  cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
]


def segment(marker, content):
  return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def segment_starts(encoded):
  """Where the segments of a sound header begin."""
  places = [2]
  while encoded[places[-1] + 1] != 0xDA:
    places.append(places[-1] + 2 + int.from_bytes(encoded[places[-1] + 2 : places[-1] + 4]))
  return places


BETWEEN = st.one_of(
  st.builds(segment, st.integers(0xE0, 0xEF) | st.just(0xFE), st.binary(max_size=40)),
  st.just(b"\xff" * 5),
  st.just(segment(0xE1, segment(0xC0, bytes(15)) * 9)),  # A thumbnail has a frame header of its own.
  st.sampled_from(
    [
      b"\xff\xd0",
      b"\xff\x01",
      b"\xff\xd8",
      b"\xff\x00",
      b"abc",
      b"\0\0\xff\0",
      b"\xff\xe5\0\0",
      b"\xff\xe5\0\1",
      segment(0xDD, b"\0\3"),
      segment(0xDC, b"\0\x10"),
      b"\xff\xd9",
    ]
  ),
  st.binary(max_size=6),
)


@COUNTS
def test_unusual_jpeg_files_train_with_the_pixels_of_evaluation(count):
  @examples(2 * count)
  @given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.booleans(),
    st.sampled_from(SAMPLINGS),
    st.booleans(),
    st.sampled_from([0, 1, 3]),
    st.booleans(),
    st.sampled_from([1, 3]),
    st.integers(0, 1000),
    st.lists(st.tuples(st.floats(0, 1), BETWEEN), max_size=3),
  )
  def check(height, width, gray, sampling, progressive, restart, optimize, channels, number, inserted):
    shape = (height, width) if gray else (height, width, 3)
    pixels = np.random.default_rng(number).integers(0, 256, shape).astype(np.uint8)
    encoded = jpeg(pixels, sampling, progressive, restart, optimize)
    assert decoded(encoded, channels) is not None
    for place, content in inserted:
      try:
        places = segment_starts(encoded)
      except IndexError:  # By what was inserted before.
        break
      start = places[int(place * (len(places) - 1))]
      encoded = encoded[:start] + content + encoded[start:]
    assert_training_reads_as_evaluation(encoded, channels, number)

  check()


def encoded_image(file_format, **options):
  stream = io.BytesIO()
  pixels = np.random.default_rng(0).integers(0, 256, (24, 37, 3)).astype(np.uint8)
  Image.fromarray(pixels).save(stream, file_format, **options)
  return stream.getvalue()


@COUNTS
@pytest.mark.parametrize(
  "file_format, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {})]
)
def test_damaged_images_are_read_as_evaluation_does_or_refused(file_format, options, count):
  whole = encoded_image(file_format, **options)

  @examples(count)
  @given(EDITS, st.sampled_from([1, 3]))
  def check(edits, channels):
    encoded = damaged(whole, edits)
    read_or_refuse_image(encoded, channels)
    assert_training_reads_as_evaluation(encoded, channels, 0)

  check()


def read_or_refuse_image(encoded, channels):
  """The pipeline makes a sentence with the record's name of this one kind of error."""
  try:
    random_crops(encoded, channels)
  except tf.errors.InvalidArgumentError:
    pass


@pytest.mark.parametrize("height, width", [(65500, 65500), (65535, 65535), (0, 37), (24, 0), (65535, 1)])
def test_a_jpeg_that_claims_a_great_size_takes_no_memory(height, width):
  whole = encoded_image("JPEG")
  frame = whole.index(b"\xff\xc0")
  read_or_refuse_image(whole[: frame + 5] + struct.pack(">HH", height, width) + whole[frame + 9 :], 3)


FRAME = struct.pack(">HHBHH", 0xFFC0, 17, 8, 99, 99)  # The beginning of the header of another image.


@pytest.mark.parametrize("between", [b"\xff", b"\xff\xd0", b"\xff\x01", b"\0" + FRAME[1:]])
@pytest.mark.parametrize("channels", [1, 3])
def test_what_looks_like_a_frame_header_and_is_none_is_passed_over(between, channels):
  """Padding, a marker without a segment, and no marker at all, before a segment that is full of frame headers.

  Who takes them for a segment with a length goes on somewhere within the next one.
  """
  whole = encoded_image("JPEG")
  start = segment_starts(whole)[1]  # Who decodes it knows a JPEG file by its first three bytes.
  for shift in range(len(FRAME)):
    filled = segment(0xE0, (bytes(shift) + FRAME * 7500)[:65530])
    encoded = whole[:start] + between + filled + whole[start:]
    assert decoded(encoded, channels).shape == (24, 37, channels)
    assert_training_reads_as_evaluation(encoded, channels, shift)


def test_a_progressive_image_that_lacks_its_last_scans_trains_with_the_pixels_of_evaluation():
  """A decoder makes up for what is missing from the blocks beside, which a crop does not have."""
  pixels = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8), (120, 120))
  whole = jpeg(pixels, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420, True, 0, False)
  scans = [place for place in range(len(whole)) if whole[place : place + 2] == b"\xff\xda"]
  tables = whole.index(b"\xff\xc4", scans[0])
  encoded = whole[: min(scans[1], tables)] + b"\xff\xd9"
  assert len(scans) > 3 and decoded(encoded, 3).shape == (120, 120, 3)
  for position in range(8):
    assert_training_reads_as_evaluation(encoded, 3, position)
