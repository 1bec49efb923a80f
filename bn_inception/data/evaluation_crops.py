"""What evaluation sees of an image: its centre, without randomness.

A TensorFlow function for one example, run in parallel by the pipeline.
"""

from bn_inception.data.host_tf import tf


def centre_crop(encoded: tf.Tensor, *, size: int, resize: int, channels: int) -> tf.Tensor:
  """The centre square of the image after its shorter side is resized.

  Bilinear, with antialiasing where the image shrinks. If the shorter side is `resize` already, the pixels are the
  stored ones.

  Args:
    encoded: scalar string, a JPEG, PNG, GIF or BMP file.
    size: side of the result in pixels, at most `resize`.
    resize: length of the shorter side before the crop.
    channels: 1 or 3; images stored otherwise (gray, CMYK) are converted.

  Returns:
    uint8 [size, size, channels].
  """
  image = tf.cond(
      tf.io.is_jpeg(encoded),
      # The default DCT shifts colours.
      lambda: tf.image.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE"),
      lambda: tf.io.decode_image(encoded, channels=channels, expand_animations=False),
  )
  stored = tf.shape(image)[:2]
  resized = tf.cast(tf.round(stored * resize / tf.reduce_min(stored)), tf.int32)
  # Resizing and cropping in one: only the pixels of the crop are computed, equal to those of the whole resized image.
  crop = tf.raw_ops.ScaleAndTranslate(
      images=image[None],
      size=[size, size],
      scale=tf.cast(resized / stored, tf.float32),
      translation=tf.cast(-((resized - size) // 2), tf.float32),
      kernel_type="triangle",
      antialias=True,
  )[0]
  return tf.ensure_shape(tf.saturate_cast(tf.round(crop), tf.uint8), [size, size, channels])
