"""What evaluation sees of an image, without randomness: its centre, or 10 or 144 crops from one decode.

TensorFlow functions for one example, run in parallel by the pipeline. Resizing is bilinear, with antialiasing where the
image shrinks; the result is rounded once, at the end.
"""

from bn_inception.data.host_tf import tf

CROPS = (1, 10, 144)

# The shorter sides 256, 288, 320, 352 for crops of 224 (GoogLeNet paper, section 7), in parts of the crop's side.
_SCALES = (8 / 7, 9 / 7, 10 / 7, 11 / 7)


def decode(encoded: tf.Tensor, *, channels: int) -> tf.Tensor:
  """The pixels of a JPEG, PNG, GIF or BMP file: uint8 [height, width, channels].

  Args:
    encoded: scalar string.
    channels: 1 or 3; images stored otherwise (gray, CMYK) are converted.
  """
  return tf.cond(
    tf.io.is_jpeg(encoded),
    # The default DCT shifts colours.
    lambda: tf.image.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE"),
    lambda: tf.io.decode_image(encoded, channels=channels, expand_animations=False),
  )


def centre_crop(encoded: tf.Tensor, *, size: int, resize: int, channels: int) -> tf.Tensor:
  """The centre square of the image after its shorter side is resized.

  If the shorter side is `resize` already, the pixels are the stored ones.

  Args:
    encoded: scalar string, a JPEG, PNG, GIF or BMP file.
    size: side of the result in pixels, at most `resize`.
    resize: length of the shorter side before the crop.
    channels: 1 or 3; images stored otherwise (gray, CMYK) are converted.

  Returns:
    uint8 [size, size, channels].
  """
  image = decode(encoded, channels=channels)
  resized = _resized_shape(tf.shape(image)[:2], resize)
  # Resizing and cropping in one: only the pixels of the crop are computed, equal to those of the whole resized image.
  return _to_uint8(_resize_window(image, resized, (resized - size) // 2, [size, size]), [size, size, channels])


def multi_crop(encoded: tf.Tensor, *, size: int, crops: int, channels: int) -> tf.Tensor:
  """10 or 144 crops of one image, which is decoded once.

  10: of the centre square, after the shorter side is resized to 8/7 of `size` (256 for 224), the four corners and the
  centre (Krizhevsky et al., 2012, section 4.1). 144: at each of four scales (256, 288, 320, 352) the left, centre and
  right square of the image (top, centre and bottom if it is tall); of each square the four corners, the centre and the
  whole square resized to `size` (GoogLeNet paper, section 7). Each crop also mirrored.

  Args:
    encoded: scalar string, a JPEG, PNG, GIF or BMP file.
    size: side of each crop in pixels.
    crops: 10 or 144.
    channels: 1 or 3.

  Returns:
    uint8 [crops, size, size, channels]; the second half of the crops is the first half mirrored, in the order of
    `crop_boxes`.
  """
  image = decode(encoded, channels=channels)
  views = []
  for scale, boxes in _boxes_by_scale(tf.shape(image)[:2], size, crops):
    resized = _resized_shape(tf.shape(image)[:2], scale)
    whole = _resize_window(image, resized, [0, 0], resized)
    for top, left, side in boxes:
      view = whole[top : top + side, left : left + side]
      views.append(view if side == size else _resize_window(view, [size, size], [0, 0], [size, size]))
  views = _to_uint8(tf.stack(views), [crops // 2, size, size, channels])
  return tf.concat([views, tf.reverse(views, [2])], 0)


def crop_boxes(shape: tf.Tensor, *, size: int, crops: int) -> tf.Tensor:
  """The squares that `multi_crop` cuts out.

  Args:
    shape: int32 [2], the image's height and width.
    size: as for `multi_crop`.
    crops: as for `multi_crop`.

  Returns:
    int32 [crops / 2, 4]: the length that the image's shorter side is resized to, and in the image so resized the
    square's top, left and side (those whose side is not `size` are resized to it).
  """
  return tf.stack(
    [
      tf.stack([scale, top, left, side])
      for scale, boxes in _boxes_by_scale(shape, size, crops)
      for top, left, side in boxes
    ]
  )


def _boxes_by_scale(
  shape: tf.Tensor, size: int, crops: int
) -> list[tuple[int, list[tuple[tf.Tensor, tf.Tensor, int]]]]:
  """For each scale (length of the shorter side in pixels) the squares (top, left, side)."""
  result = []
  for factor in _SCALES if crops == 144 else _SCALES[:1]:
    scale = round(factor * size)
    room = _resized_shape(shape, scale) - scale  # Beyond a square: (0, width - height) of a wide image.
    squares = [room * 0, room // 2, room] if crops == 144 else [room // 2]
    corners = [(0, 0), (0, scale - size), (scale - size, 0), (scale - size, scale - size)]
    corners.append(((scale - size) // 2,) * 2)
    boxes = []
    for square in squares:
      boxes += [(square[0] + top, square[1] + left, size) for top, left in corners]
      if crops == 144:
        boxes.append((square[0], square[1], scale))
    result.append((scale, boxes))
  return result


def _resized_shape(shape: tf.Tensor, shorter: int) -> tf.Tensor:
  """int32 [2], height and width of an image whose shorter side is resized to `shorter`."""
  return tf.cast(tf.round(shape * shorter / tf.reduce_min(shape)), tf.int32)


def _resize_window(image: tf.Tensor, resized: tf.Tensor, start: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
  """Of the image resized to `resized` (height, width) the window of `shape` from `start` on; float32."""
  return tf.raw_ops.ScaleAndTranslate(
    images=image[None],
    size=shape,
    scale=tf.cast(resized / tf.shape(image)[:2], tf.float32),
    translation=-tf.cast(start, tf.float32),
    kernel_type="triangle",
    antialias=True,
  )[0]


def _to_uint8(pixels: tf.Tensor, shape: list[int]) -> tf.Tensor:
  return tf.ensure_shape(tf.saturate_cast(tf.round(pixels), tf.uint8), shape)
