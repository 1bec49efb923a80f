"""Geometric distortions of the training images: the random crop, resize and flip of the GoogLeNet paper.

arXiv 1409.4842, section 6: "sampling of various sized patches of the image whose size is distributed evenly between 8%
and 100% of the image area and whose aspect ratio is chosen randomly between 3/4 and 4/3" and "random interpolation
methods (bilinear, area, nearest neighbor and cubic, with equal probability) for resizing". These run on the host, where
the image is decoded; the photometric ones follow on the device (color_distortions.py).

TensorFlow decodes (its JPEG decoder skips what lies outside of the crop), OpenCV resizes: on bytes, 2 to 3 times faster
than the resizing operations of TensorFlow or PIL. Both release Python's lock. Every random choice is a hash of (seed,
position, number of the choice), never of threads or of what was drawn before.
"""

import functools
import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from bn_inception.data import evaluation_crops, stream
from bn_inception.data.host_tf import tf

INTERPOLATIONS = ("random", "bilinear")

_TRIES = 10
_METHODS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST_EXACT, cv2.INTER_CUBIC)
_DOMAIN = 1  # Sets these random numbers apart from those of the record order.

# Images are processed in parallel; splitting each over the cores as well only costs time.
cv2.setNumThreads(1)


def random_crops(
  encoded: Sequence[bytes],
  positions: np.ndarray,
  out: np.ndarray,
  *,
  seed: int,
  crop_area: tuple[float, float],
  crop_aspect: tuple[float, float],
  flip: bool,
  interpolation: str,
) -> None:
  """A random part of each image, resized to `out`, mirrored half of the time.

  Args:
    encoded: n JPEG, PNG, GIF or BMP files.
    positions: int64 [n], of the examples in the training stream.
    out: uint8 [n, height, width, channels], filled here. With 1 channel or 3; images stored otherwise (gray, CMYK) are
      converted.
    seed: any integer.
    crop_area: least and greatest share of the image's area.
    crop_aspect: least and greatest width / height; its logarithm is uniform.
    flip: whether to mirror.
    interpolation: 'bilinear', or 'random': each of four methods a quarter of the time. Only 'area' averages all pixels
      that fall on a new one; bilinear, nearest and bicubic (a = -0.75) look at the 2x2, 1 and 4x4 around its centre
      also when they shrink an image. So did TensorFlow's methods of that time, whose recipe this is: the aliasing is
      one more distortion. Evaluation has no randomness and is antialiased.

  Raises:
    tf.errors.OpError: for a file that cannot be decoded.
  """
  channels = out.shape[-1]
  uniforms = _uniforms(seed, positions, 4 * _TRIES + 2)
  # 'bilinear' is the first method.
  methods = (uniforms[:, -1] * (len(_METHODS) if interpolation == "random" else 1)).astype(int)
  mirrored = flip & (uniforms[:, -2] < 0.5)
  # Only the header of a JPEG is read before its crop; other formats, and unusual headers, are decoded whole.
  shapes = [_jpeg_shape(image) for image in encoded]
  jpegs = [row for row, shape in enumerate(shapes) if shape]
  others = {
    row: evaluation_crops.decode(encoded[row], channels=channels).numpy()
    for row, shape in enumerate(shapes)
    if not shape
  }
  shapes = np.array([shape or others[row].shape[:2] for row, shape in enumerate(shapes)])
  boxes = _random_boxes(shapes, uniforms[:, : 4 * _TRIES].reshape(-1, 4, _TRIES), crop_area, crop_aspect)
  crops = {
    row: image[top : top + height, left : left + width]
    for row, image in others.items()
    for top, left, height, width in [boxes[row]]
  }
  if jpegs:
    decode = _jpeg_crop_decoder(len(jpegs), channels)
    top, left, height, width = boxes[jpegs].T
    # The decoder makes colours from those of the pixels beside, and takes the sides of a crop for those of the image:
    # with a column more on each the pixels are those of the whole image.
    first, end = np.maximum(left - 1, 0), np.minimum(left + width + 1, shapes[jpegs, 1])
    wider = np.stack([top, first, height, end - first], axis=1).astype(np.int32)
    decoded = decode(tf.constant([encoded[row] for row in jpegs]), tf.constant(wider))
    # Without a copy, unlike Tensor.numpy().
    crops |= {
      row: np.asarray(memoryview(image))[:, margin : margin + columns]
      for row, image, margin, columns in zip(jpegs, decoded, left - first, width)
    }
  mirror = np.empty_like(out[0])
  for row, crop in crops.items():
    if mirrored[row]:  # After resizing, when there are fewer pixels to move.
      resize(crop, _METHODS[methods[row]], mirror)
      cv2.flip(mirror, 1, dst=out[row])
    else:
      resize(crop, _METHODS[methods[row]], out[row])


@functools.cache
def _jpeg_crop_decoder(count: int, channels: int) -> Callable[[tf.Tensor, tf.Tensor], list[tf.Tensor]]:
  """Makes a function that decodes boxes int32 [count, 4] (top, left, height, width) of JPEG files string [count].

  One call for all of them, during which nobody needs Python's lock.
  """

  @tf.function(autograph=False)
  def decode(encoded: tf.Tensor, boxes: tf.Tensor) -> list[tf.Tensor]:
    # The default DCT shifts colours.
    return [
      tf.io.decode_and_crop_jpeg(image, box, channels=channels, dct_method="INTEGER_ACCURATE")
      for image, box in zip(tf.unstack(encoded), tf.unstack(boxes))
    ]

  return decode.get_concrete_function(tf.TensorSpec([count], tf.string), tf.TensorSpec([count, 4], tf.int32))


def _jpeg_shape(encoded: bytes) -> tuple[int, int] | None:
  """Height and width from the frame header of a sequential JPEG file; None for others, and after anything unusual.

  A tenth of the time of TensorFlow's operation, which sets up its whole decoder.
  """
  if encoded[:2] != b"\xff\xd8":
    return None
  place = 2
  while place + 9 <= len(encoded):
    marker, length = encoded[place + 1], int.from_bytes(encoded[place + 2 : place + 4])
    if encoded[place] != 0xFF:  # What stands between segments a decoder passes over.
      return None
    if marker == 0xFF:  # Padding.
      place += 1
    elif marker in (0xC0, 0xC1):  # Sequential.
      return int.from_bytes(encoded[place + 5 : place + 7]), int.from_bytes(encoded[place + 7 : place + 9])
    # Progressive or arithmetic coding (a decoder smooths what is missing of a progressive image by its neighbours,
    # which a crop lacks), no segment with a length, or the image data.
    elif marker in (0x00, 0x01, *range(0xC2, 0xDB)) and marker != 0xC4 or length < 2:
      return None
    else:
      place += 2 + length
  return None


def resize(pixels: np.ndarray, method: int, out: np.ndarray) -> None:
  """Resizes uint8 [H, W, channels] to the size of `out` with one of OpenCV's methods.

  A new pixel's centre lies where it lies in the image: at ((i + 0.5) H / new height - 0.5). Results are within 1.2
  levels of the exact ones, nearest neighbours equal.
  """
  (height, width), (new_height, new_width) = pixels.shape[:2], out.shape[:2]
  if method == cv2.INTER_AREA and (height > new_height) != (width > new_width):
    # OpenCV averages areas only if neither side grows, and interpolates both sides otherwise.
    pixels = cv2.resize(pixels, (min(width, new_width), min(height, new_height)), interpolation=method)
  cv2.resize(pixels, (new_width, new_height), dst=out, interpolation=method)


def _uniforms(seed: int, positions: np.ndarray, count: int) -> np.ndarray:
  """float64 [n, count] in [0, 1): a row for each position."""
  bits = stream.key(seed, _DOMAIN, np.asarray(positions)[:, None], np.arange(count))
  return (bits >> np.uint64(11)) * 2.0**-53


def _random_boxes(
  shapes: np.ndarray, uniforms: np.ndarray, crop_area: tuple[float, float], crop_aspect: tuple[float, float]
) -> np.ndarray:
  """For each image the first of several random boxes that fits, else the greatest centred one of allowed aspect.

  Args:
    shapes: int [n, 2], heights and widths.
    uniforms: float64 [n, 4, tries] in [0, 1).
    crop_area: see `random_crops`.
    crop_aspect: see `random_crops`.

  Returns:
    int32 [n, 4]: top, left, height, width.
  """

  def between(uniform, low, high):
    return low + uniform * (high - low)

  image_heights, image_widths = shapes.T[:, :, None].astype(float)  # [n, 1] each.
  areas = image_heights * image_widths * between(uniforms[:, 0], *crop_area)
  aspects = np.exp(between(uniforms[:, 1], *map(math.log, crop_aspect)))
  widths, heights = np.round(np.sqrt(areas * aspects)), np.round(np.sqrt(areas / aspects))
  fits = (widths >= 1) & (heights >= 1) & (widths <= image_widths) & (heights <= image_heights)
  tops = np.floor(uniforms[:, 2] * (image_heights - heights + 1))
  lefts = np.floor(uniforms[:, 3] * (image_widths - widths + 1))
  boxes = np.stack([tops, lefts, heights, widths], axis=-1)  # [n, tries, 4]
  first = boxes[np.arange(len(boxes)), fits.argmax(axis=1)]

  widths = np.minimum(image_widths, np.round(image_heights * crop_aspect[1]))
  heights = np.minimum(image_heights, np.round(image_widths / crop_aspect[0]))
  centred = np.concatenate([(image_heights - heights) // 2, (image_widths - widths) // 2, heights, widths], axis=1)
  return np.where(fits.any(axis=1, keepdims=True), first, centred).astype(np.int32)
