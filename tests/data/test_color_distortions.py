"""Photometric distortions against the formulas in float64, PIL and colorsys, and their randomness."""

import collections
import colorsys
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from bn_inception.data import color_distortions
from bn_inception.data.color_distortions import BRIGHTNESS, CONTRAST, HUE, SATURATION

LUMA = np.array([0.299, 0.587, 0.114])
# The NTSC matrix, as it stands in the standard.
TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
SEED, STRENGTH = 5, 1.0

choose = jax.jit(color_distortions.choose, static_argnames=("seed", "strength", "channels"))
apply = jax.jit(color_distortions.apply)
distort = jax.jit(color_distortions.distort, static_argnames=("seed", "strength"))


def positions(count: int, first: int = 0) -> np.ndarray:
  return np.arange(first, first + count, dtype=np.uint32)


def photographs(count: int, size: int = 16, channels: int = 3) -> np.ndarray:
  """Blotches of colour from black to white; each image has a range of its own."""
  random = np.random.default_rng(0)
  coarse = random.uniform(0, 255, (count, size // 4, size // 4, channels)).repeat(4, 1).repeat(4, 2)
  ranges = random.uniform(0.3, 1.3, (count, 1, 1, 1))
  return np.clip(coarse * ranges + random.normal(0, 10, (count, size, size, channels)), 0, 255).astype(np.uint8)


def reference(image: np.ndarray, amounts: np.ndarray, order: np.ndarray) -> np.ndarray:
  """One image, an operation after the other, in float64."""
  x = image.astype(np.float64)
  for operation in order:
    amount = float(amounts[operation])
    if operation == BRIGHTNESS:
      x = x + amount
    elif operation == CONTRAST:
      mean = x.mean((0, 1))
      x = mean + amount * (x - mean)
    elif operation == SATURATION:
      gray = (x @ LUMA)[..., None]
      x = gray + amount * (x - gray)
    else:
      y, i, q = np.moveaxis(x @ TO_YIQ.T, -1, 0)
      turned = (i + 1j * q) * np.exp(2j * np.pi * amount)
      x = np.stack([y, turned.real, turned.imag], -1) @ np.linalg.inv(TO_YIQ).T
    x = np.clip(x, 0, 255)
  return x


@pytest.mark.parametrize("channels", [3, 1])
def test_every_order_is_that_of_the_formulas(channels: int) -> None:
  """200 images: each of the 24 (or 2) orders comes, in one batch."""
  images = photographs(200, channels=channels)
  choices = choose(SEED, positions(200), strength=STRENGTH, channels=channels)
  orders = {tuple(order) for order in np.asarray(choices.order)}
  assert orders == set(itertools.permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)[: 4 if channels == 3 else 2]))
  result = np.asarray(distort(images, positions(200), seed=SEED, strength=STRENGTH))
  assert result.dtype == np.float32 and result.shape == images.shape
  for image, amounts, order, mine in zip(images, *map(np.asarray, choices), result):
    np.testing.assert_allclose(mine, reference(image, amounts, order), atol=2e-3)
  assert 0 <= result.min() and result.max() <= 255 and (result == 0).any() and (result == 255).any()


def test_order_matters() -> None:
  """Clipping between the operations keeps them from commuting."""
  images = photographs(24)
  orders = np.array(list(itertools.permutations(range(4))), np.int32)
  amount = np.tile(np.array([30.0, 1.5, 1.5, 0.2], np.float32), (24, 1))
  one_image = np.repeat(images[:1], 24, 0)
  results = np.asarray(apply(one_image, color_distortions.Choices(amount, orders)))
  for a, b in itertools.combinations(results, 2):
    assert np.abs(a - b).mean() > 0.05


def only(operation: int, amount: float, images: np.ndarray) -> np.ndarray:
  """One operation; the three others change nothing."""
  amounts = np.tile(np.array([0.0, 1.0, 1.0, 0.0], np.float32), (len(images), 1))
  amounts[:, operation] = amount
  orders = np.tile(np.arange(4, dtype=np.int32), (len(images), 1))
  return np.asarray(apply(images, color_distortions.Choices(amounts, orders)))


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 1.5])
def test_saturation_is_pils(factor: float) -> None:
  images = photographs(4)
  for image, mine in zip(images, only(SATURATION, factor, images)):
    pil = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(factor)).astype(float)
    assert np.abs(mine - pil).max() < 1.51  # PIL rounds the gray and the result down.


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_contrast_of_a_gray_image_is_pils(factor: float) -> None:
  """With equal channels the mean of each is the mean gray that PIL uses."""
  images = np.repeat(photographs(4, channels=1), 3, -1)
  for image, mine in zip(images, only(CONTRAST, factor, images)):
    pil = np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(factor)).astype(float)
    assert np.abs(mine - pil).max() < 1.51


@pytest.mark.parametrize("turn", [-0.2, -0.07, 0.1, 0.2])
def test_hue_turns_colours_and_keeps_their_luma(turn: float) -> None:
  """Muted colours, which stay within range: chroma and luma stay, as colorsys's (slightly other) YIQ sees it too."""
  colors = np.random.default_rng(1).integers(100, 156, (1, 8, 8, 3)).astype(np.uint8)
  turned = only(HUE, turn, colors)[0].astype(float)
  np.testing.assert_allclose(turned @ LUMA, colors[0] @ LUMA, atol=1e-3)
  for before, after in zip(colors[0].reshape(-1, 3), turned.reshape(-1, 3)):
    (_, i, q), (_, i2, q2) = colorsys.rgb_to_yiq(*before), colorsys.rgb_to_yiq(*after)
    assert abs(np.hypot(i2, q2) - np.hypot(i, q)) < 0.06 * np.hypot(i, q) + 0.1
    if np.hypot(i, q) > 5:
      angle = np.angle((i2 + 1j * q2) / (i + 1j * q)) / (2 * np.pi)
      assert angle == pytest.approx(turn, abs=0.015)
  gray = np.full((1, 4, 4, 3), 90, np.uint8)
  np.testing.assert_allclose(only(HUE, turn, gray), 90, atol=1e-3)


def test_no_strength_changes_nothing() -> None:
  images = photographs(30)
  np.testing.assert_allclose(distort(images, positions(30), seed=SEED, strength=0.0), images, atol=1e-3)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_amounts_are_uniform_in_the_stated_ranges(strength: float) -> None:
  amount = np.asarray(choose(SEED, positions(48_000), strength=strength, channels=3).amount).astype(float)
  for operation, center, reach in ((BRIGHTNESS, 0, 32), (CONTRAST, 1, 0.5), (SATURATION, 1, 0.5), (HUE, 0, 0.2)):
    values = (amount[:, operation] - center) / (strength * reach)
    assert -1.000001 < values.min() < -0.999 and 0.999 < values.max() < 1.000001
    tally, _ = np.histogram(values, bins=20, range=(-1, 1))
    assert ((tally - 2400) ** 2 / 2400).sum() < 45  # 19 degrees of freedom.
  correlation = np.corrcoef(amount.T) - np.eye(4)
  assert np.abs(correlation).max() < 0.02
  successive = [np.corrcoef(amount[:-1, operation], amount[1:, operation])[0, 1] for operation in range(4)]
  assert np.abs(successive).max() < 0.02


def test_orders_are_equally_likely_and_independent_of_the_amounts() -> None:
  choices = choose(SEED, positions(48_000), strength=1.0, channels=3)
  tally = collections.Counter(map(tuple, np.asarray(choices.order)))
  assert len(tally) == 24 and all(set(order) == {0, 1, 2, 3} for order in tally)
  assert sum((count - 2000) ** 2 / 2000 for count in tally.values()) < 50  # 23 degrees of freedom.
  first = np.asarray(choices.order)[:, 0]
  means = [np.asarray(choices.amount)[first == operation, BRIGHTNESS].mean() for operation in range(4)]
  assert np.abs(means).max() < 1  # Of a range of 64.


def test_choices_are_of_seed_and_position_alone() -> None:
  whole = choose(SEED, positions(64), strength=1.0, channels=3)
  part = choose(SEED, positions(16, first=32), strength=1.0, channels=3)
  jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[32:48], b), whole, part)
  for seed in (SEED + 1, -1, SEED + 2**32, SEED + 2**63):
    other = choose(seed, positions(64), strength=1.0, channels=3)
    assert (np.asarray(other.amount) != np.asarray(whole.amount)).mean() > 0.99
  later = choose(SEED, positions(64, first=50_000), strength=1.0, channels=3)
  assert (np.asarray(later.amount) != np.asarray(whole.amount)).mean() > 0.99


def test_a_part_of_a_batch_is_distorted_as_in_the_whole() -> None:
  images = photographs(32)
  whole = distort(images, positions(32, 100), seed=0, strength=1.0)
  part = distort(jnp.asarray(images[8:16]), positions(8, 108), seed=0, strength=1.0)
  np.testing.assert_allclose(whole[8:16], part, atol=1e-4)
