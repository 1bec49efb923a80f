"""The names of classes: the two orders of ImageNet, and files that name them."""

import re

import pytest

from bn_inception import release
from bn_inception.release import labels


def test_both_orders_are_of_the_same_1000_wordnet_ids():
  ids = labels.sorted_imagenet()
  assert len(ids) == len(set(ids)) == 1000 and list(ids) == sorted(ids) == sorted(labels.ilsvrc2015())
  assert all(re.fullmatch(r"n\d{8}", name) for name in ids)


def test_orders_are_those_of_their_sources():
  """First, last and a few between: caffe's synset_words.txt and the devkit's map_clsloc.txt."""
  ids = labels.sorted_imagenet()
  assert [ids[n] for n in (0, 1, 207, 281, 999)] == ["n01440764", "n01443537", "n02099601", "n02123045", "n15075141"]
  ids = labels.ilsvrc2015()
  assert ids[:3] == ("n02119789", "n02100735", "n02110185") and ids[-1] == "n03255030"


def test_what_people_call_a_class():
  """From caffe's synset_words.txt; what is no WordNet id of ImageNet names itself."""
  names = {"n01440764": "tench", "n02123045": "tabby", "n02099601": "golden retriever", "n15075141": "toilet tissue"}
  assert {label: release.human_name(label) for label in names} == names
  assert release.human_name("hot dog") == "hot dog" and release.human_name(labels.BACKGROUND) == "background"


def test_names_are_read_a_line_each(tmp_path):
  path = tmp_path / "names.txt"
  path.write_bytes("tench, Tinca tinca\r\nhot dog\nÉpée\n".encode())
  assert labels.read(path, 3) == ("tench, Tinca tinca", "hot dog", "Épée")


@pytest.mark.parametrize(
  "content, message",
  [
    (b"a\nb\n", "names 2 classes, but the network has 3"),
    (b"", "names 1 classes"),
    (b"a\n\nb", "class 2 of 3 has no"),
    (b"a\nb\na\n", "class 3 of 3 has a name that came before .'a'"),
    (b"\xff\xfe\x00", "is not a text file"),
  ],
)
def test_names_that_do_not_fit_are_one_sentence(tmp_path, content, message):
  path = tmp_path / "names.txt"
  path.write_bytes(content)
  with pytest.raises(release.ReleaseError, match=message) as error:
    labels.read(path, 3)
  assert "names.txt" in str(error.value) and "\n" not in str(error.value)


def test_missing_and_huge_files_are_one_sentence(tmp_path):
  with pytest.raises(release.ReleaseError, match="cannot be read"):
    labels.read(tmp_path / "none", 3)
  (tmp_path / "huge").write_bytes(b"a\n" * 2**22)
  with pytest.raises(release.ReleaseError, match="is no list of class names"):
    labels.read(tmp_path / "huge", 2**22)
