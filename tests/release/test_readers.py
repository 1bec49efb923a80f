"""Every container read bit for bit, and what is damaged or hostile refused without executing anything."""

import collections
import gzip
import io
import lzma
import os
import pathlib
import pickle
import shutil
import struct
import sys
import types
import zipfile

import numpy as np
import pytest

from bn_inception import release
from bn_inception.release import source_file
from bn_inception.release.peers.caffe import file as caffe_file
from bn_inception.release.peers.mxnet import file as mxnet_file
from bn_inception.release.peers.pytorch import file as torch_file
from bn_inception.release.peers.tensorflow import file as tensorflow_file

READERS = {
  "pth_a_legacy.pth": torch_file.read,
  "pth_b_zip.pth": torch_file.read,
  "pth_c_py2_torch03.pth": torch_file.read,
  "mx_v0.params": mxnet_file.read,
  "mx_v1.params": mxnet_file.read,
  "mx_v2.params": mxnet_file.read,
  "tf_v1.ckpt": lambda content: tensorflow_file.read(pathlib.Path("name"), content),
}


def assert_same_bits(actual, expected):
  assert actual.dtype == expected.dtype and actual.shape == expected.shape and actual.tobytes() == expected.tobytes()


# ---------------------------------------------------------------------------------------------------------- containers


@pytest.mark.parametrize("name", [*READERS, "tf_v2.ckpt.index"])
def test_container_is_read_bit_for_bit(parity, name):
  path = parity / "formats" / name
  reader = READERS.get(name, lambda content: tensorflow_file.read(path, content))
  tensors = reader(source_file.read(path))
  expected = np.load(path.with_name(name.split("_")[0] + "_expected.npz"))
  tracked = {key for key in tensors if key.endswith("num_batches_tracked")}
  assert tensors.keys() - tracked == {key.replace("|", "/") for key in expected}
  for key, values in expected.items():
    if name == "pth_c_py2_torch03.pth" and "_bn." in key:
      values = values[None]  # Written so by the tools of that time.
    assert_same_bits(tensors[key.replace("|", "/")], values)


@pytest.mark.parametrize("name", READERS)
def test_every_truncation_is_an_error(parity, name):
  content = (parity / "formats" / name).read_bytes()
  for size in {*range(0, 400, 7), *range(0, len(content), len(content) // 150), len(content) - 1}:
    with pytest.raises(release.ReleaseError):
      READERS[name](content[:size])


@pytest.mark.parametrize("name", READERS)
def test_changed_bytes_are_an_error_or_other_numbers_but_never_another_exception(parity, name):
  content, rng = (parity / "formats" / name).read_bytes(), np.random.default_rng(0)
  for trial in range(300):
    damaged = bytearray(content)
    for position in rng.integers(len(content) if trial % 2 else 1500, size=3):
      damaged[position] = rng.integers(256)
    try:
      READERS[name](bytes(damaged))
    except release.ReleaseError:
      pass


def test_v2_checkpoint_without_all_its_data_is_an_error(parity, tmp_path):
  for path in (parity / "formats").glob("tf_v2*"):
    shutil.copyfile(path, tmp_path / path.name)
  data = next(tmp_path.glob("*.data-*"))
  content = data.read_bytes()
  for damaged in (content[:-1], content[:100], b""):
    data.write_bytes(damaged)
    with pytest.raises(release.ReleaseError, match="TensorFlow checkpoint"):
      release.read(tmp_path / "tf_v2.ckpt")


@pytest.mark.parametrize("name", [f"tf_v2.ckpt{end}" for end in ("", ".index", ".data-00000-of-00001", ".meta")])
def test_v2_checkpoint_is_found_by_each_of_its_names(parity, name):
  with pytest.raises(release.ReleaseError, match="InceptionV2"):  # Read, but a few tensors are no network.
    release.read(parity / "formats" / name)


# --------------------------------------------------------------------------------------------------------- compression


def test_xz_is_undone_for_every_format(parity, tmp_path):
  path = tmp_path / "file.xz"
  content = (parity / "formats/mx_v0.params").read_bytes()
  path.write_bytes(lzma.compress(content))
  assert source_file.read(path) == content


@pytest.mark.parametrize("damage", [lambda xz: xz[:-20], lambda xz: xz[:100], lambda xz: xz[:50] + b"???" + xz[53:]])
def test_damaged_xz_is_an_error(tmp_path, damage):
  path = tmp_path / "file.xz"
  path.write_bytes(damage(lzma.compress(np.random.default_rng(0).bytes(5000))))
  with pytest.raises(release.ReleaseError, match="file.xz is (damaged|cut off)"):
    source_file.read(path)


def test_xz_bomb_is_not_unpacked(tmp_path, monkeypatch):
  monkeypatch.setattr(source_file, "MAX_BYTES", 10**6)
  path = tmp_path / "bomb.xz"
  path.write_bytes(lzma.compress(bytes(10**8), preset=0))
  assert path.stat().st_size < 10**5
  with pytest.raises(release.ReleaseError, match="more than the 1,000,000 bytes"):
    release.read(path)


def test_zip_bomb_is_not_unpacked(tmp_path):
  path = tmp_path / "bomb.pth"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("archive/data.pkl", bytes(10**8))
  with pytest.raises(release.ReleaseError, match="compressed.*not unpacked"):
    release.read(path)


def test_archive_whose_members_overlap_is_not_unpacked(tmp_path):
  """A directory may list the same bytes many times."""
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    archive.writestr("a/data.pkl", bytes(10**5))
    first = archive.infolist()[0]
    for number in range(20):
      copy = zipfile.ZipInfo(f"a/data/{number}")
      copy.file_size = copy.compress_size = first.file_size
      copy.CRC, copy.header_offset = first.CRC, first.header_offset
      archive.filelist.append(copy)
  with pytest.raises(release.ReleaseError, match="claims to hold more"):
    torch_file.read(stream.getvalue())


# ------------------------------------------------------------------------------------------------------ hostile pickles


class Evil:
  """Creates a file when it is unpickled freely."""

  def __init__(self, function, *arguments):
    self.call = (function, arguments)

  def __reduce__(self):
    return self.call


def as_legacy(pickled: bytes, keys: bytes = pickle.dumps([], 2), storages: bytes = b"") -> bytes:
  parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
  return b"".join([*parts, pickled, keys, storages])


def as_zip(pickled: bytes) -> bytes:
  stream = io.BytesIO()
  with zipfile.ZipFile(stream, "w") as archive:
    archive.writestr("archive/data.pkl", pickled)
  return stream.getvalue()


def hostile_pickles(victim: pathlib.Path) -> dict[str, bytes]:
  command = f"touch {victim}"
  text = command.encode()
  return {
    "os.system, protocol 2": pickle.dumps({"weight": Evil(os.system, command)}, 2),
    "open, protocol 2": pickle.dumps({"weight": Evil(open, str(victim), "w")}, 2),
    "eval, protocol 4": pickle.dumps(Evil(eval, f"open({str(victim)!r}, 'w')"), 4),
    "exec through __builtin__": b"\x80\x02c__builtin__\neval\nX" + struct.pack("<I", len(text)) + text + b"\x85R.",
    "INST": b"\x80\x02(X" + struct.pack("<I", len(text)) + text + b"iposix\nsystem\n.",
    "OBJ": b"\x80\x02(cposix\nsystem\nX" + struct.pack("<I", len(text)) + text + b"o.",
    "NEWOBJ": b"\x80\x02csubprocess\nPopen\nX" + struct.pack("<I", len(text)) + text + b"\x85\x81.",
    "attribute of a known module": b"\x80\x04\x8c\x0ctorch._utils\x8c\x1e_rebuild_tensor_v2.__globals__\x93.",
    "extension": b"\x80\x02\x82\x01.",
  }


@pytest.mark.parametrize("container", [as_legacy, as_zip])
@pytest.mark.parametrize("attack", hostile_pickles(pathlib.Path("victim")))
def test_hostile_pickle_executes_nothing(tmp_path, container, attack):
  victim = tmp_path / "victim"
  path = tmp_path / "evil.pth"
  path.write_bytes(container(hostile_pickles(victim)[attack]))
  with pytest.raises(release.ReleaseError, match="nothing of it was executed"):
    release.read(path)
  assert not victim.exists()


def test_the_attack_of_these_tests_works_on_a_free_unpickler(tmp_path):
  pickle.loads(hostile_pickles(tmp_path / "victim")["os.system, protocol 2"])
  assert (tmp_path / "victim").exists()


def test_pickle_cannot_change_the_reader():
  """BUILD sets attributes of what is on the stack."""
  rebuild = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__call__K\x01s\x86b."
  for state in (rebuild, rebuild.replace(b"\x86b.", b"b."), b"\x80\x02ccollections\nOrderedDict\n}U\x03popK\x01sb."):
    with pytest.raises(release.ReleaseError):
      torch_file.read(as_legacy(state))
  assert callable(collections.OrderedDict.pop)


def test_huge_memo_index_takes_no_memory():
  assert torch_file.read(as_legacy(b"\x80\x02}r\xff\xff\xff\x7f.")) == {}


def nested_pickles() -> dict[str, bytes]:
  """What Python itself cannot hash, compare or print: too deep for its stack, or 2^200 leaves."""
  deep = b")" + b"\x85" * 300_000
  wide = b")" + b"q\x00h\x00\x86" * 200
  storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x04tQ"
  rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
  pickles = {}
  for name, nested in (("deep", deep), ("wide", wide)):
    pickles |= {
      f"{name} key": b"\x80\x02}" + nested + b"K\x01s.",
      f"{name} value": b"\x80\x02}X\x01\x00\x00\x00a" + nested + b"s.",
      f"{name} items": b"\x80\x02ccollections\nOrderedDict\n](" + nested + b"K\x01\x86e\x85R.",
      f"{name} storage": b"\x80\x02(X\x07\x00\x00\x00storage" + nested + b"X\x01\x00\x00\x00kNK\x01tQ.",
      f"{name} shape": b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + storage + b"K\x00" + nested + b")tRs.",
      f"{name} offset": b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + storage + nested + b"))tRs.",
    }
  # 10^9 times a tuple of one element would be 8 GB.
  pickles["product"] = (
    b"\x80\x02}X\x01\x00\x00\x00a" + rebuild + storage + b"K\x00J\x00\xca\x9a\x3bK\x01\x85\x86" + b"K\x01K\x01\x86tRs."
  )
  pickles["endless"] = b"\x80\x02" + b"N" * 1_100_000 + b"."
  return pickles


@pytest.mark.parametrize("name", nested_pickles())
def test_nested_pickle_is_one_short_sentence(name):
  pickled = nested_pickles()[name]
  for content in (as_zip(pickled), as_legacy(pickled)):
    with pytest.raises(release.ReleaseError) as error:
      torch_file.read(content)
    assert len(str(error.value)) < 300


def test_nested_parts_of_the_old_container_are_one_short_sentence():
  nested = b")" + b"q\x00h\x00\x86" * 200 + b"."
  parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
  for place, part in ((1, nested), (2, nested), (4, nested[:-1] + b"\x85.")):
    with pytest.raises(release.ReleaseError) as error:
      torch_file.read(b"".join([*parts[:place], b"\x80\x02" + part, *parts[place + 1 :]]))
    assert len(str(error.value)) < 300


# ---------------------------------------------------------------------------------------- what views of storages may be


class Storage:
  """Stands for a storage while it is pickled."""

  def __init__(self, size, dtype="FloatStorage"):
    self.size, self.dtype = size, dtype


class View:
  """Stands for a tensor while it is pickled."""

  def __init__(self, storage, offset, shape, strides):
    self.arguments = (storage, offset, shape, strides, False, collections.OrderedDict())

  def __reduce__(self):
    return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


@pytest.fixture
def write_legacy(monkeypatch):
  """Writes a state dict of views of one storage, as PyTorch before 1.6 did."""

  def _rebuild_tensor_v2():
    pass

  _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
  modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
  for name in ("FloatStorage", "LongStorage"):
    setattr(modules["torch"], name, type(name, (), {"__module__": "torch"}))
  modules["torch._utils"]._rebuild_tensor_v2 = _rebuild_tensor_v2
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)

  class Pickler(pickle.Pickler):
    def persistent_id(self, value):
      if isinstance(value, Storage):
        return ("storage", getattr(modules["torch"], value.dtype), "key", "cpu", value.size, None)
      return None

  def write(tensors, values):
    stream = io.BytesIO()
    Pickler(stream, 2).dump(collections.OrderedDict(tensors))
    return as_legacy(stream.getvalue(), pickle.dumps(["key"], 2), struct.pack("<q", len(values)) + values.tobytes())

  return write


def test_views_share_a_storage_with_offsets_and_strides(write_legacy):
  values, storage = np.arange(12, dtype=np.float32), Storage(12)
  content = write_legacy(
    {
      "transposed": View(storage, 0, (4, 3), (1, 4)),
      "tail": View(storage, 9, (3,), (1,)),
      "scalar": View(storage, 5, (), ()),
      "empty": View(storage, 0, (0, 3), (3, 1)),
    },
    values,
  )
  tensors = torch_file.read(content)
  assert_same_bits(tensors["transposed"], np.ascontiguousarray(values.reshape(3, 4).T))
  assert_same_bits(tensors["tail"], values[9:])
  assert_same_bits(tensors["scalar"], np.array(5, np.float32))
  assert tensors["empty"].shape == (0, 3)


def test_integers_keep_their_type(write_legacy):
  values = np.array([2**62, -1], np.int64)
  content = write_legacy({"steps": View(Storage(2, "LongStorage"), 0, (2,), (1,))}, values)
  assert_same_bits(torch_file.read(content)["steps"], values)


@pytest.mark.parametrize(
  "size,offset,shape,strides",
  [
    (12, 0, (13,), (1,)),
    (12, 1, (12,), (1,)),
    (12, 0, (4, 3), (4, 1)),
    (12, -1, (3,), (1,)),
    (12, 0, (3,), (-1,)),
    (12, 0, (-3,), (1,)),
    (12, 0, (3,), (1, 1)),
    (12, 0, (10**9,), (0,)),
    (12, 0, (2,), (2**62,)),
    (12, 0, (2**40, 2**40), (0, 0)),
    (13, 0, (3,), (1,)),
    (2**60, 0, (3,), (1,)),
    (-12, 0, (3,), (1,)),
  ],
)
def test_view_out_of_range_is_an_error(write_legacy, size, offset, shape, strides):
  content = write_legacy({"weight": View(Storage(size), offset, shape, strides)}, np.zeros(12, np.float32))
  with pytest.raises(release.ReleaseError):
    torch_file.read(content)


@pytest.mark.parametrize("tree", [[1, 2], {"weight": 1}, {"state_dict": {}, "epoch": 3}, None, {1: {}}])
def test_what_is_no_state_dict_is_an_error(tree):
  for container in (as_legacy, as_zip):
    with pytest.raises(release.ReleaseError, match="something else than a state dict"):
      torch_file.read(container(pickle.dumps(tree, 2)))


# ------------------------------------------------------------------------------------------------------ what is unknown


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\x00",
    b"hello",
    b"PK\x03\x04",
    bytes(1000),
    np.random.default_rng(0).bytes(10_000),
    np.random.default_rng(1).bytes(100),
    b"\x89HDF\r\n\x1a\n" + bytes(100),
    (0x112).to_bytes(8, "little") + bytes(8) + b"\xff" * 16,
    bytes(500) + (0xDB4775248B80FB57).to_bytes(8, "little"),
  ],
)
def test_what_is_no_checkpoint_is_one_sentence_that_names_the_file(tmp_path, content):
  path = tmp_path / "file"
  (tmp_path / "file-symbol.json").write_text('{"nodes": []}')
  path.write_bytes(content)
  with pytest.raises(release.ReleaseError) as error:
    release.read(path)
  assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_to_be_unpacked_first_is_said(tmp_path):
  """TF-slim's release is a .tar.gz."""
  path = tmp_path / "inception_v2_2016_08_28.tar.gz"
  path.write_bytes(gzip.compress(bytes(1000)))
  with pytest.raises(release.ReleaseError, match="gzip archive: unpack it and give the file inside"):
    release.read(path)


def test_missing_file_and_folder_without_release_are_errors(tmp_path):
  with pytest.raises(release.ReleaseError, match="nothing cannot be read: No such file"):
    release.read(tmp_path / "nothing")
  with pytest.raises(release.ReleaseError, match="lacks model.safetensors"):
    release.read(tmp_path)


def test_mxnet_scalar_and_types(tmp_path):
  """A numpy-shaped scalar, and every type of number."""

  def array(version, shape, values, number):
    head = struct.pack("<Ii", version, 0) + struct.pack(f"<i{len(shape)}q", len(shape), *shape)
    return head + struct.pack("<iii", 2, 0, number) + values.tobytes()

  types_ = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
  expected = [np.array([1, 2, 3], dtype) for dtype in types_] + [np.array(7, "<f4")]
  arrays = [array(0xF993FAC9, (3,), values, number) for number, values in enumerate(expected[:-1])]
  arrays.append(array(0xF993FACA, (), expected[-1], 0))
  count = struct.pack("<Q", len(arrays))
  names = b"".join(struct.pack("<Q", 1) + bytes([97 + number]) for number in range(len(arrays)))
  tensors = mxnet_file.read(struct.pack("<QQ", 0x112, 0) + count + b"".join(arrays) + count + names)
  assert list(tensors) == list("abcdefgh")
  for actual, values in zip(tensors.values(), expected, strict=True):
    assert_same_bits(actual, values)


# ---------------------------------------------------------------------------------- fields that contradict each other


def mxnet_array(shape, values):
  """A .params file of one array that claims to have a shape."""
  head = struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, len(shape)) + struct.pack(f"<{len(shape)}q", *shape)
  return head + struct.pack("<iii", 1, 0, 0) + values.tobytes() + struct.pack("<QQ", 1, 1) + b"a"


def caffe_blob(shape, values):
  """A .caffemodel of one layer with one blob that claims to have a shape, given in one byte a size."""
  field = lambda number, content: bytes([number << 3 | 2, len(content)]) + content
  blob = field(7, field(1, bytes(shape))) + field(5, values.tobytes())
  layer = field(1, b"a") + bytes([7 << 3 | 2, 0x80 | len(blob) & 0x7F, len(blob) >> 7]) + blob
  return b"\xa2\x06" + bytes([0x80 | len(layer) & 0x7F, len(layer) >> 7]) + layer


@pytest.mark.parametrize(
  "write, read, shape, words",
  [
    (mxnet_array, mxnet_file.read, (-2, -3), r"has the shape \(-2, -3\)"),
    (mxnet_array, mxnet_file.read, (0, 6), r"has the shape \(0, 6\)"),
    (mxnet_array, mxnet_file.read, (6, *[1] * 64), "has 65 axes"),
    (caffe_blob, caffe_file.read, (5,), r"blob a:0 of shape \(5,\) has 24 bytes"),
    (caffe_blob, caffe_file.read, (6, *[1] * 64), "has 65 axes"),
  ],
)
def test_a_shape_that_the_values_cannot_have_is_one_sentence(write, read, shape, words):
  """Neither is found by the end of the file: the sizes multiply to that of the values, or what is read ends before."""
  values = np.arange(6, dtype=np.float32)
  (sound,) = read(write((2, 3), values)).values()
  assert_same_bits(sound, values.reshape(2, 3))
  with pytest.raises(release.ReleaseError, match=words):
    read(write(shape, values))


def test_a_number_in_the_place_of_a_layer_is_one_sentence():
  with pytest.raises(release.ReleaseError, match="a number stands where a message belongs"):
    caffe_file.read(b"\x0a\x01a" + b"\xa0\x06\x07")


def test_tensorflow_values_that_are_no_numbers_or_too_many_are_one_sentence(tmp_path, monkeypatch):
  from bn_inception.data.host_tf import tf

  def write(name, value):
    tf.raw_ops.Save(filename=str(tmp_path / name), tensor_names=["a"], data=[tf.constant(value)])
    return tensorflow_file.read(tmp_path / name, (tmp_path / name).read_bytes())

  with pytest.raises(release.ReleaseError, match="values that are no numbers"):
    write("text", ["a", "b"])
  assert write("numbers", np.zeros(25, np.float32))["a"].shape == (25,)
  monkeypatch.setattr(source_file, "MAX_BYTES", 99)
  with pytest.raises(release.ReleaseError, match="its variables have 100 bytes, and more than 99 are not read"):
    write("numbers", np.zeros(25, np.float32))
