"""10 and 144 crops: the boxes against a list written down by brute force, the pixels against PIL."""

import io

import numpy as np
import pytest
from PIL import Image

from bn_inception.data import evaluation_crops
from bn_inception.data.host_tf import tf

SHAPES = {"landscape": (375, 500), "portrait": (500, 333), "square": (300, 300), "tiny": (5, 9), "thin": (40, 601)}


def boxes_by_hand(height: int, width: int, crops: int) -> list[tuple[int, int, int, int]]:
  """(shorter side, top, left, side) for crops of 224, in the words of the GoogLeNet paper (section 7)."""
  if crops == 10:
    scales = [256]
  else:
    scales = [256, 288, 320, 352]
  boxes = []
  for scale in scales:
    if height < width:
      resized_height, resized_width = scale, int(np.round(width * scale / height))
      squares = {"left": (0, 0), "centre": (0, (resized_width - scale) // 2), "right": (0, resized_width - scale)}
    else:
      resized_height, resized_width = int(np.round(height * scale / width)), scale
      squares = {"top": (0, 0), "centre": ((resized_height - scale) // 2, 0), "bottom": (resized_height - scale, 0)}
    assert min(resized_height, resized_width) == scale
    for name, (top, left) in squares.items():
      if crops == 10 and name != "centre":
        continue
      boxes.append((scale, top, left, 224))
      boxes.append((scale, top, left + scale - 224, 224))
      boxes.append((scale, top + scale - 224, left, 224))
      boxes.append((scale, top + scale - 224, left + scale - 224, 224))
      boxes.append((scale, top + (scale - 224) // 2, left + (scale - 224) // 2, 224))
      if crops == 144:
        boxes.append((scale, top, left, scale))
  return boxes


@pytest.mark.parametrize("crops", [10, 144])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_boxes_are_those_of_the_list(shape: tuple[int, int], crops: int) -> None:
  boxes = evaluation_crops.crop_boxes(tf.constant(shape), size=224, crops=crops).numpy()
  expected = boxes_by_hand(*shape, crops)
  assert len(expected) == crops // 2
  np.testing.assert_array_equal(boxes, expected)
  assert (boxes[:, 1:3] >= 0).all()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_every_box_lies_in_the_image_and_the_outer_ones_touch_its_ends(shape: tuple[int, int]) -> None:
  for scale, top, left, side in evaluation_crops.crop_boxes(tf.constant(shape), size=224, crops=144).numpy():
    assert top + side <= np.round(shape[0] * scale / min(shape)) and left + side <= np.round(
      shape[1] * scale / min(shape)
    )
  ends = [(top + side, left + side) for scale, top, left, side in boxes_by_hand(*shape, 144) if scale == 352]
  assert max(ends) == tuple(int(np.round(length * 352 / min(shape))) for length in shape)


def test_boxes_scale_with_the_size_of_the_crop() -> None:
  boxes = evaluation_crops.crop_boxes(tf.constant([32, 32]), size=28, crops=144).numpy()
  assert sorted(set(boxes[:, 0])) == [32, 36, 40, 44] and set(boxes[:, 3]) == {28, 32, 36, 40, 44}


def resized(channel: np.ndarray, height: int, width: int) -> np.ndarray:
  """PIL's antialiased bilinear filter; in float mode it does not round."""
  return np.asarray(Image.fromarray(channel.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("crops", [10, 144])
@pytest.mark.parametrize("shape", [SHAPES["landscape"], SHAPES["portrait"], SHAPES["tiny"]])
def test_pixels_are_those_of_pil(shape: tuple[int, int], crops: int) -> None:
  noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(noise).save(file, "PNG")
  result = evaluation_crops.multi_crop(tf.constant(file.getvalue()), size=224, crops=crops, channels=3).numpy()
  assert result.shape == (crops, 224, 224, 3) and result.dtype == np.uint8
  wholes = {}
  for row, (scale, top, left, side) in enumerate(boxes_by_hand(*shape, crops)):
    if scale not in wholes:
      height, width = (int(np.round(length * scale / min(shape))) for length in shape)
      wholes[scale] = resized(noise[..., 1], height, width)
    expected = resized(wholes[scale][top : top + side, left : left + side], 224, 224)
    assert np.abs(result[row, ..., 1] - expected).max() < 0.51
    np.testing.assert_array_equal(result[crops // 2 + row], result[row, :, ::-1])
