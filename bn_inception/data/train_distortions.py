"""Geometric distortions of the training images: the random crop, resize and flip of the GoogLeNet paper.

arXiv 1409.4842, section 6: "sampling of various sized patches of the image whose size is distributed evenly between 8%
and 100% of the image area and whose aspect ratio is chosen randomly between 3/4 and 4/3" and "random interpolation
methods (bilinear, area, nearest neighbor and cubic, with equal probability) for resizing". These run on the host, where
the image is decoded; the photometric ones follow on the device (color_distortions.py).

TensorFlow decodes (its JPEG decoder skips what lies outside of the crop), OpenCV resizes: on bytes, 2 to 3 times faster
than the resizing operations of TensorFlow or PIL. Both release Python's lock. Every random choice is a hash of (seed,
position, number of the choice), never of threads or of what was drawn before.
"""

import math

import cv2
import numpy as np

from bn_inception.data import stream
from bn_inception.data.host_tf import tf

INTERPOLATIONS = ("random", "bilinear")

_TRIES = 10
_METHODS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST_EXACT, cv2.INTER_CUBIC)
_DOMAIN = 1  # Sets these random numbers apart from those of the record order.

# Images are processed in parallel; splitting each over the cores as well only costs time.
cv2.setNumThreads(1)


def random_crops(
    encoded: tf.Tensor,
    positions: np.ndarray,
    *,
    seed: int,
    size: int,
    channels: int,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float],
    flip: bool,
    interpolation: str,
) -> np.ndarray:
  """A random part of each image, resized to a square, mirrored half of the time.

  Args:
    encoded: string [n], JPEG, PNG, GIF or BMP files.
    positions: int64 [n], of the examples in the training stream.
    seed: any integer.
    size: side of the results in pixels.
    channels: 1 or 3; images stored otherwise (gray, CMYK) are converted.
    crop_area: least and greatest share of the image's area.
    crop_aspect: least and greatest width / height; its logarithm is uniform.
    flip: whether to mirror.
    interpolation: 'bilinear', or 'random': each of four methods a quarter of the time. Only 'area' averages all pixels
      that fall on a new one; bilinear, nearest and bicubic (a = -0.75) look at the 2x2, 1 and 4x4 around its centre
      also when they shrink an image. So did TensorFlow's methods of that time, whose recipe this is: the aliasing is
      one more distortion. Evaluation has no randomness and is antialiased.

  Returns:
    uint8 [n, size, size, channels].

  Raises:
    tf.errors.OpError: for a file that cannot be decoded.
  """
  uniforms = _uniforms(seed, positions, 4 * _TRIES + 2)
  # 'bilinear' is the first method.
  methods = (uniforms[:, -1] * (len(_METHODS) if interpolation == "random" else 1)).astype(int)
  mirrored = flip & (uniforms[:, -2] < 0.5)
  # Only the header of a JPEG is read before its crop; other formats are decoded whole.
  is_jpeg = tf.strings.substr(encoded, 0, 3).numpy() == b"\xff\xd8\xff"
  sources = [
      image if jpeg else tf.io.decode_image(image, channels=channels, expand_animations=False)
      for image, jpeg in zip(tf.unstack(encoded), is_jpeg)
  ]
  shapes = np.array([
      tf.image.extract_jpeg_shape(source).numpy()[:2] if jpeg else source.shape[:2]
      for source, jpeg in zip(sources, is_jpeg)
  ])
  boxes = _random_boxes(shapes, uniforms[:, : 4 * _TRIES].reshape(-1, 4, _TRIES), crop_area, crop_aspect)
  crops = np.empty((len(positions), size, size, channels), np.uint8)
  resized = np.empty((size, size, channels), np.uint8)
  for row, (source, jpeg, box) in enumerate(zip(sources, is_jpeg, tf.unstack(boxes))):
    if jpeg:
      # The default DCT shifts colours.
      crop = tf.io.decode_and_crop_jpeg(source, box, channels=channels, dct_method="INTEGER_ACCURATE").numpy()
    else:
      top, left, height, width = boxes[row]
      crop = source.numpy()[top : top + height, left : left + width]
    resize(crop, _METHODS[methods[row]], out=resized if mirrored[row] else crops[row])
    if mirrored[row]:
      cv2.flip(resized, 1, dst=crops[row])
  return crops


def resize(pixels: np.ndarray, method: int, out: np.ndarray) -> None:
  """Resizes uint8 [H, W, channels] to the size of `out` with one of OpenCV's methods.

  A new pixel's centre lies where it lies in the image: at ((i + 0.5) H / new height - 0.5). Results are within one
  level of the exact ones.
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
  between = lambda uniform, low, high: low + uniform * (high - low)
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
