"""Pillow's images as upright 8-bit RGB, whatever they were saved as."""

from __future__ import annotations

import re

import numpy as np
from PIL import ExifTags, Image

# Not ImageOps.exif_transpose: it writes the rest of the EXIF back, which fails where a camera left it damaged.
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP_COLOURS = re.compile(r"\b(L|LA|RGB[AXa]*|CMYK);16")  # Pillow keeps their high bytes (BMP's BGR;16 is 5-6-5 bits)
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # a TIFF's tag


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """An image as viewers show it, uint8 ``[h, w, 3]``: turned as its EXIF orientation says, of an animation the first
    frame.

    Grey is repeated, alpha dropped. Of 16 bits (12, if a TIFF says so) the high byte is taken; a PGM or PPM is scaled
    by its largest value. Raises ValueError on pixels without an agreed range: floating-point, signed and 32-bit ones,
    and 16-bit images whose largest value is below 4096. These hold 12 bits or fewer without saying so, and less than 16
    levels, nearly black, would be left of them.
    """
    # What loading forgets: the layout of the pixels in the file.
    layout = " ".join(str(tile[3]) for tile in getattr(image, "tile", ()))
    file_format, inverted = image.format, getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    image.load()  # before the EXIF: Pillow turns a TIFF by itself
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode == "F" or (image.mode == "I" and file_format != "PPM"):
        raise ValueError("floating-point, signed and 32-bit pixels have no agreed range: save 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion would clip at 255
        grey = np.asarray(image).astype(np.int64)
        if "I;12" in layout:
            grey = grey << 4
        elif file_format != "PPM":
            _refuse_narrow(int(grey.max()))
        grey = 65535 - grey if inverted else grey  # of 8 bits and fewer, Pillow inverts it
        return np.repeat((grey >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "P":  # a palette may hold transparency, which only RGBA can express
        image = image.convert("RGBA")
    pixels = np.array(image.convert("RGB"))
    if _DEEP_COLOURS.search(layout):
        _refuse_narrow((int(pixels.max()) << 8) + 255)
    return pixels


def _refuse_narrow(largest: int) -> None:
    if 0 < largest < 4096:
        raise ValueError(
            f"of 16 bits its values use only {largest.bit_length()}, which would be read as nearly black: stretch all "
            "images of the set alike, to 65535, or save 8 bits"
        )
