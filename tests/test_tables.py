"""The comparison of released networks: accuracy and error alike, the standard error, and which set a number is of."""

import re

import pytest

from bn_inception import tables

METRICS = {"top1_error": 0.25, "top5_error": 0.08, "count": 50_000, "skipped": 0, "without_label": 0}
PUBLISHED = "top-1 73.524 %, top-5 91.562 % (stated in its README, not measured here)"


def request(data="imagenet2012:5.1.0", split="validation"):
  return {"networks": [{"path": "net.pth"}], "crops": 1, "data": data, "split": split}


def row(text, name):
  return re.findall(r"[\d.]+%", next(line for line in text.splitlines() if line.strip().startswith(name)))


def test_accuracy_and_error_stand_side_by_side_for_all():
  """sqrt(0.25 * 0.75 / 50,000) = 0.19%, sqrt(0.08 * 0.92 / 50,000) = 0.12%."""
  text = tables.comparison(request(), METRICS, [PUBLISHED])
  assert row(text, "net.pth") == ["75.00%", "25.00%", "0.19%", "92.00%", "8.00%", "0.12%"]
  assert row(text, "published for net.pth") == ["73.52%", "26.48%", "91.56%", "8.44%"]
  assert row(text, "the paper: BN-Inception single crop") == ["74.80%", "25.20%", "92.18%", "7.82%"]
  assert row(text, "the paper: GoogLeNet ensemble") == ["93.33%", "6.67%"]
  assert "another set" not in text
  lines = [line for line in text.splitlines()[2:] if "%" in line and ":" not in line[-3:]]
  ends = {line.rindex("%") for line in lines if line.strip().startswith("the paper")}
  assert len(ends) == 1  # Columns are columns.


@pytest.mark.parametrize("change", [dict(data="imagenet_v2:3.0.0"), dict(split="validation[:100]"), {}])
def test_another_set_is_said_to_be_one(change):
  metrics = METRICS | ({} if change else {"count": 49_999, "skipped": 1})
  text = tables.comparison(request(**change), metrics, [PUBLISHED])
  assert "of the 50,000 images of imagenet2012 validation, and this is another set" in text
  assert ("the paper" in text) == ("data" not in change)


def test_networks_of_which_nothing_is_published():
  text = tables.comparison(request(data="digits:1.0.0", split="test"), METRICS, ["none"])
  assert "another set" not in text and "Published for net.pth: none." in text


def test_ensemble():
  both = request() | {"networks": [{"path": "a"}, {"path": "b"}]}
  text = tables.comparison(both, METRICS, [PUBLISHED, "none"])
  assert row(text, "ensemble of 2")[0] == "75.00%" and row(text, "published for a")[0] == "73.52%"
  assert "published for b" not in text


def test_examples_that_are_not_counted_are_said():
  lines = tables.comparison(request(), METRICS | {"skipped": 1200, "without_label": 3}, ["none"]).splitlines()
  assert "  1,200 examples could not be read and are not counted." in lines
  assert "  3 examples have no label and are not counted." in lines
  assert "not counted" not in tables.comparison(request(), METRICS, ["none"])
