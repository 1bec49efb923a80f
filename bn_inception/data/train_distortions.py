"""Distortions of the training images: the random crop and flip of the GoogLeNet paper (arXiv 1409.4842, section 6).

TensorFlow functions for one example, run in parallel by the pipeline. Every random choice is a function of `key` alone,
never of threads or of what was drawn before.
"""

import math

from bn_inception.data.host_tf import tf

_TRIES = 10


def random_crop_and_flip(
    encoded: tf.Tensor,
    key: tf.Tensor,
    *,
    size: int,
    channels: int,
    crop_area: tuple[float, float],
    crop_aspect: tuple[float, float],
    flip: bool,
) -> tf.Tensor:
  """A random part of the image, resized to a square, mirrored half of the time.

  Args:
    encoded: scalar string, a JPEG, PNG, GIF or BMP file.
    key: int64 [2], (seed, position in the training stream).
    size: side of the result in pixels.
    channels: 1 or 3; images stored otherwise (gray, CMYK) are converted.
    crop_area: least and greatest share of the image's area.
    crop_aspect: least and greatest width / height; its logarithm is uniform.
    flip: whether to mirror.

  Returns:
    uint8 [size, size, channels].
  """
  uniforms = tf.random.stateless_uniform([4 * _TRIES + 1], key, alg="philox")
  box_uniforms, flip_uniform = tf.reshape(uniforms[:-1], [4, _TRIES]), uniforms[-1]

  def crop_jpeg() -> tf.Tensor:
    # Decoding only the window costs a fraction of decoding a large photograph. The default DCT shifts colours.
    box = _random_box(tf.image.extract_jpeg_shape(encoded), box_uniforms, crop_area, crop_aspect)
    return tf.image.decode_and_crop_jpeg(encoded, box, channels=channels, dct_method="INTEGER_ACCURATE")

  def crop_other() -> tf.Tensor:
    image = tf.io.decode_image(encoded, channels=channels, expand_animations=False)
    top, left, height, width = tf.unstack(_random_box(tf.shape(image), box_uniforms, crop_area, crop_aspect))
    return image[top : top + height, left : left + width]

  image = tf.cond(tf.io.is_jpeg(encoded), crop_jpeg, crop_other)
  image = tf.image.resize(image, [size, size], method="bilinear")
  if flip:
    image = tf.cond(flip_uniform < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
  return tf.ensure_shape(tf.cast(tf.round(image), tf.uint8), [size, size, channels])


def _random_box(
    shape: tf.Tensor, uniforms: tf.Tensor, crop_area: tuple[float, float], crop_aspect: tuple[float, float]
) -> tf.Tensor:
  """The first of several random boxes that fits into the image, else the greatest centred one of allowed aspect.

  Args:
    shape: int32 [3], the image's height, width and channels.
    uniforms: float32 [4, tries] in [0, 1).
    crop_area: see `random_crop_and_flip`.
    crop_aspect: see `random_crop_and_flip`.

  Returns:
    int32 [4]: top, left, height, width.
  """
  size = tf.cast(shape[:2], tf.float32)
  image_height, image_width = size[0], size[1]
  area = image_height * image_width * _between(uniforms[0], *crop_area)
  aspect = tf.exp(_between(uniforms[1], math.log(crop_aspect[0]), math.log(crop_aspect[1])))
  widths, heights = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
  fits = (widths >= 1) & (heights >= 1) & (widths <= image_width) & (heights <= image_height)
  tops = tf.floor(uniforms[2] * (image_height - heights + 1))
  lefts = tf.floor(uniforms[3] * (image_width - widths + 1))
  boxes = tf.stack([tops, lefts, heights, widths], axis=1)

  width = tf.minimum(image_width, tf.round(image_height * crop_aspect[1]))
  height = tf.minimum(image_height, tf.round(image_width / crop_aspect[0]))
  centred = tf.stack([(image_height - height) // 2, (image_width - width) // 2, height, width])
  box = tf.where(tf.reduce_any(fits), boxes[tf.argmax(fits)], centred)
  return tf.cast(box, tf.int32)


def _between(uniform: tf.Tensor, low: float, high: float) -> tf.Tensor:
  return low + uniform * (high - low)
