"""Crops against their definition, and decoding against PIL."""

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from PIL import Image

from bn_inception.data import evaluation_crops, train_distortions
from bn_inception.data.host_tf import tf

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)


def encode(image: Image.Image, file_format: str = "PNG", **options: int) -> bytes:
  file = io.BytesIO()
  image.save(file, file_format, **options)
  return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
  """A picture that JPEG keeps well: a different ramp in each channel."""
  y, x = np.mgrid[0:height, 0:width]
  ramps = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)]
  return np.stack(ramps, -1).astype(np.uint8)


def crops(encoded: bytes, positions: Sequence[int], size: int = 8, channels: int = 3, seed: int = 0, **options):
  """uint8 [positions, size, size, channels] of one image."""
  options = {"crop_area": AREA, "crop_aspect": ASPECT, "flip": False, "interpolation": "bilinear", **options}
  out = np.zeros((len(positions), size, size, channels), np.uint8)
  files = [encoded] * len(positions)
  train_distortions.random_crops(files, np.array(positions, np.int64), out, seed=seed, **options)
  return out


def crop(encoded: bytes, position: int, *args, **options) -> np.ndarray:
  return crops(encoded, [position], *args, **options)[0]


@pytest.fixture(scope="module", name="boxes")
def fixture_boxes() -> np.ndarray:
  """4,000 random boxes of a 300 x 360 image: top, left, height, width."""
  uniforms = train_distortions._uniforms(1, np.arange(4000), 40).reshape(-1, 4, 10)
  return train_distortions._random_boxes(np.tile([300, 360], (4000, 1)), uniforms, AREA, ASPECT)


def test_boxes_lie_within_the_image_and_the_stated_ranges(boxes: np.ndarray) -> None:
  top, left, height, width = boxes.T
  assert (boxes >= 0).all() and (top + height <= 300).all() and (left + width <= 360).all()
  # Rounding moves a side by half a pixel at most.
  assert ((width + 0.5) * (height + 0.5) >= AREA[0] * 300 * 360).all()
  assert ((width + 0.5) / (height - 0.5) >= ASPECT[0]).all() and ((width - 0.5) / (height + 0.5) <= ASPECT[1]).all()


def test_boxes_are_distributed_as_the_paper_says(boxes: np.ndarray) -> None:
  top, left, height, width = boxes.astype(float).T
  share = width * height / (300 * 360)
  # Below half of the area nearly every box fits: there the area is uniform and the log aspect symmetric and uniform.
  small = share < 0.5
  tally, _ = np.histogram(share[small], bins=6, range=(0.08, 0.5))
  assert ((tally - tally.mean()) ** 2 / tally.mean()).sum() < 25  # 5 degrees of freedom.
  log_aspect = np.log(width / height)[small]
  tally, _ = np.histogram(log_aspect, bins=4, range=(math.log(3 / 4), math.log(4 / 3)))
  assert ((tally - tally.mean()) ** 2 / tally.mean()).sum() < 25
  # Every place of a box is equally likely: its relative position is uniform.
  for place in (top / (300 - height + 1), left / (360 - width + 1)):
    tally, _ = np.histogram(place[small], bins=5, range=(0, 1))
    assert ((tally - tally.mean()) ** 2 / tally.mean()).sum() < 30
  assert share.max() > 0.9 and share.min() < 0.09


def test_what_never_fits_is_the_centre() -> None:
  image = np.zeros((10, 100, 3), np.uint8)
  image[:, 44:57] = 200  # 10 high and at most 4/3 as wide: columns 43 (or 44) to 56.
  result = crop(encode(Image.fromarray(image)), 0, crop_area=(1.0, 1.0))
  assert (result[:, 1:] == 200).all()


def test_whole_image_is_resized_bilinearly() -> None:
  """The whole image as the only box, at its own size: the stored pixels."""
  image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
  options = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "size": 12}
  np.testing.assert_array_equal(crop(encode(Image.fromarray(image)), 0, **options), image)
  ramp = np.repeat(np.arange(0, 240, 20, np.uint8)[None, :, None], 12, 0)
  smaller = crop(encode(Image.fromarray(ramp[..., 0])), 0, channels=1, **{**options, "size": 9})
  source_columns = (np.arange(9) + 0.5) * 12 / 9 - 0.5  # Where the centres of the new pixels lie.
  np.testing.assert_allclose(smaller[0, :, 0], 20 * source_columns, atol=0.7)  # Weights of 11 bits.


def linear(t: np.ndarray) -> np.ndarray:
  return np.maximum(0, 1 - np.abs(t))


def cubic(t: np.ndarray) -> np.ndarray:
  """Keys' kernel with a = -0.75."""
  a, t = -0.75, np.abs(t)
  near, far = (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
  return np.where(t <= 1, near, np.where(t < 2, far, 0))


def weights(method: int, old: int, new: int) -> np.ndarray:
  """float64 [new, old]: how much of each old pixel of a row is in each new one."""
  rows = np.zeros((new, old))
  for row in range(new):
    if method == cv2.INTER_AREA:  # The overlap of [row, row + 1) old / new with each pixel.
      low, high = row * old / new, (row + 1) * old / new
      rows[row] = np.clip(np.minimum(high, np.arange(old) + 1) - np.maximum(low, np.arange(old)), 0, None)
      continue
    center = (row + 0.5) * old / new - 0.5
    if method == cv2.INTER_NEAREST_EXACT:
      rows[row, int(np.floor(center + 0.5))] = 1
      continue
    for place in range(math.floor(center) - 1, math.floor(center) + 3):
      kernel = linear if method == cv2.INTER_LINEAR else cubic
      rows[row, np.clip(place, 0, old - 1)] += kernel(np.array(center - place))
  return rows / rows.sum(1, keepdims=True)


@pytest.mark.parametrize("method", train_distortions._METHODS)
@pytest.mark.parametrize("shape", [(100, 120), (20, 33), (64, 64), (1, 1), (150, 40), (30, 200), (128, 63), (2, 500)])
@pytest.mark.parametrize("channels", [3, 1])
def test_interpolation_is_its_definition(method: int, shape: tuple[int, int], channels: int) -> None:
  """Both sides grow, shrink, stay, or one of each; noise, so that a shift of a pixel would show."""
  image = np.random.default_rng(0).integers(0, 256, (*shape, channels)).astype(np.uint8)
  result = np.zeros((64, 64, channels), np.uint8)
  train_distortions.resize(image, method, result)
  vertical, horizontal = (weights(method, side, 64) for side in shape)
  exact = np.clip(np.einsum("yh,hwc,xw->yxc", vertical, image.astype(float), horizontal), 0, 255)
  error = np.abs(result - exact)
  if method == cv2.INTER_NEAREST_EXACT:
    assert error.max() == 0
  else:  # Rounded, twice where one side grows and the other shrinks; OpenCV's bilinear weights have 11 bits.
    assert error.max() < 1.2 and error.mean() < 0.4 and abs((result - exact).mean()) < 0.15


def test_methods_are_equally_likely() -> None:
  """What resizes the whole image is one of the four; 'bilinear' is always the first of them."""
  image = np.random.default_rng(0).integers(0, 256, (11, 17, 3)).astype(np.uint8)
  options = {"crop_area": (1.0, 1.0), "crop_aspect": (17 / 11, 17 / 11), "size": 13}
  expected = np.zeros((4, 13, 13, 3), np.uint8)
  for method, out in zip(train_distortions._METHODS, expected):
    train_distortions.resize(image, method, out)
  results = crops(encode(Image.fromarray(image)), range(1000), interpolation="random", **options)
  is_method = (results[:, None] == expected).all((2, 3, 4))
  assert (is_method.sum(1) == 1).all()
  assert ((is_method.sum(0) - 250) ** 2 / 250).sum() < 20  # 3 degrees of freedom.
  results = crops(encode(Image.fromarray(image)), range(20), interpolation="bilinear", **options)
  assert (results == expected[0]).all()


def test_half_are_mirrored() -> None:
  image = smooth(16, 16)
  encoded = encode(Image.fromarray(image))
  options = {"crop_area": (1.0, 1.0), "crop_aspect": (1.0, 1.0), "size": 16, "flip": True}
  mirrored = 0
  for position in range(200):
    result = crop(encoded, position, **options)
    is_mirrored = (result == image[:, ::-1]).all()
    assert is_mirrored or (result == image).all()
    mirrored += is_mirrored
  assert 70 < mirrored < 130  # 4 standard deviations.
  assert all((crop(encoded, p, **{**options, "flip": False}) == image).all() for p in range(20))


def test_randomness_is_of_seed_and_position_alone() -> None:
  encoded = encode(Image.fromarray(smooth(64, 64)))
  first = crop(encoded, 5, seed=1, flip=True)
  np.testing.assert_array_equal(first, crop(encoded, 5, seed=1, flip=True))
  assert (first != crop(encoded, 6, seed=1, flip=True)).any()
  assert (first != crop(encoded, 5, seed=2, flip=True)).any()


@pytest.mark.parametrize("quality_and_sampling", [(95, 0), (90, 2)])
def test_a_decoded_window_is_the_window_of_the_decoded_image(quality_and_sampling: tuple[int, int]) -> None:
  quality, subsampling = quality_and_sampling
  jpeg = encode(Image.fromarray(smooth(120, 160)), "JPEG", quality=quality, subsampling=subsampling)
  whole = encode(Image.fromarray(tf.image.decode_jpeg(jpeg, dct_method="INTEGER_ACCURATE").numpy()))
  for position in range(20):
    from_window, from_whole = crop(jpeg, position, 24).astype(int), crop(whole, position, 24).astype(int)
    # Where colours are stored at half the resolution, the window's edge has no neighbours to interpolate with.
    assert np.abs(from_window - from_whole).max() <= (0 if subsampling == 0 else 3)


@pytest.mark.parametrize(
  "mode,file_format", [("CMYK", "JPEG"), ("L", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("P", "PNG")]
)
def test_images_of_other_kinds_have_three_channels(mode: str, file_format: str) -> None:
  picture = Image.fromarray(smooth(64, 64)).convert(mode)
  options = {"quality": 95} if file_format == "JPEG" else {}
  encoded = encode(picture, file_format, **options)
  expected = np.asarray(picture.convert("RGB"), float)
  for result in (
    crop(encoded, 0, 64, crop_area=(1.0, 1.0), crop_aspect=(1.0, 1.0)),
    evaluation_crops.centre_crop(tf.constant(encoded), size=64, resize=64, channels=3).numpy(),
  ):
    assert result.shape == (64, 64, 3) and result.dtype == np.uint8
    assert np.abs(result - expected).mean() < 4


@pytest.mark.parametrize(
  "options",
  [
    {},
    {"comment": b"\xff\xc0" * 50},
    {"exif": Image.Exif()},
    {"icc_profile": b"\xff\xd8" * 90},
    {"restart_marker_rows": 1},
  ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_shape_of_a_jpeg_is_in_its_header(mode: str, options: dict) -> None:
  encoded = encode(Image.fromarray(smooth(37, 290)).convert(mode), "JPEG", **options)
  assert train_distortions._jpeg_shape(encoded) == (37, 290)
  scan = encoded.index(b"\xff\xda")
  padded = encoded[:2] + b"\xff\xff" + encoded[2:]  # Any marker may be padded.
  assert train_distortions._jpeg_shape(padded) == (37, 290)
  for cut in (0, 1, 2, 3, 10, 20):
    assert train_distortions._jpeg_shape(encoded[:cut]) is None
  assert scan > 20 and train_distortions._jpeg_shape(encode(Image.fromarray(smooth(37, 290)))) is None
  # Its crops need the whole image.
  assert train_distortions._jpeg_shape(encode(Image.fromarray(smooth(37, 290)), "JPEG", progressive=True)) is None


def centre(encoded: bytes, size: int, resize: int, channels: int = 3) -> np.ndarray:
  return evaluation_crops.centre_crop(tf.constant(encoded), size=size, resize=resize, channels=channels).numpy()


@pytest.mark.parametrize("shape", [(32, 32), (32, 47), (50, 32)])
def test_pixels_of_the_right_size_are_the_stored_ones(shape: tuple[int, int]) -> None:
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  top, left = (shape[0] - 32) // 2, (shape[1] - 32) // 2
  encoded = encode(Image.fromarray(image))
  np.testing.assert_array_equal(centre(encoded, 32, 32), image[top : top + 32, left : left + 32])
  inner = image[(shape[0] - 20) // 2 :, (shape[1] - 20) // 2 :][:20, :20]
  np.testing.assert_array_equal(centre(encoded, 20, 32), inner)
  gray = image[..., 0]
  np.testing.assert_array_equal(
    centre(encode(Image.fromarray(gray)), 32, 32, 1)[..., 0], gray[top : top + 32, left : left + 32]
  )


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (320, 240), (100, 60), (256, 256)])
def test_resized_centre_is_that_of_pil(shape: tuple[int, int]) -> None:
  """PIL's bilinear filter is antialiased too; in its float mode it does not round."""
  noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  height, width = (round(side * 256 / min(shape)) for side in shape)
  channels = [Image.fromarray(noise[..., channel].astype(np.float32)) for channel in range(3)]
  resized = np.stack([np.asarray(c.resize((width, height), Image.Resampling.BILINEAR)) for c in channels], -1)
  top, left = (height - 224) // 2, (width - 224) // 2
  result = centre(encode(Image.fromarray(noise)), 224, 256)
  assert np.abs(result - resized[top : top + 224, left : left + 224]).max() < 0.51
