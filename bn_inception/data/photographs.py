"""Image files of people: checked whole, upright, and as files that the input pipeline decodes.

A camera that is held upright writes its picture lying and says so in EXIF. TensorFlow does not look there; who reads
such a file unchanged trains on pictures that lie on their side.
"""

import io
import pathlib
import struct
from typing import NamedTuple

from PIL import Image, ImageOps

from bn_inception.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff")  # In folders with other files.
_ORIENTATION, _UPRIGHT = 0x0112, 1  # In EXIF.
_KEPT = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG"}  # By their first bytes.


class PhotographError(DataError):
  """A file that is no whole image; the text names it and says why."""


class Photograph(NamedTuple):
  """An image file as the pipeline takes it.

  Attributes:
    encoded: a JPEG or PNG file. The bytes are those of the file wherever they can be.
    is_turned: it was turned or mirrored as its EXIF orientation says, and encoded anew (JPEG at quality 95).
    is_converted: it was of another format, and is a PNG file now.
  """

  encoded: bytes
  is_turned: bool
  is_converted: bool


def read(path: pathlib.Path) -> Photograph:
  """Reads and decodes an image file of any format that Pillow knows; of an animation its first picture.

  Raises:
    PhotographError: if it cannot be read to its end.
  """
  try:
    content = path.read_bytes()
    image = Image.open(io.BytesIO(content))
    image.load()
    is_turned = image.getexif().get(_ORIENTATION, _UPRIGHT) in range(2, 9)
    kind = next((name for start, name in _KEPT.items() if content.startswith(start)), None)
    if kind and not is_turned:
      return Photograph(content, False, False)
    image = ImageOps.exif_transpose(image)
    encoded = io.BytesIO()
    if kind == "JPEG":
      image = image if image.mode == "L" else image.convert("RGB")
      image.save(encoded, "JPEG", quality=95, subsampling=0, exif=b"")
    else:
      image.convert("RGB").save(encoded, "PNG", exif=b"")
  except Image.UnidentifiedImageError as error:
    raise PhotographError(f"{path} is no image") from error
  except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    raise PhotographError(f"{path} cannot be read ({reason})") from error
  return Photograph(encoded.getvalue(), is_turned, kind is None)
