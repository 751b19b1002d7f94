"""Images as viewers show them: turned, of any depth and mode, and refused where their range is anybody's guess."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from hybridprune.data.decode import decode_file
from hybridprune.data.pixels import rgb_pixels
from hybridprune.data.stream import ImageFiles
from hybridprune.errors import UserError
from tests.data.image_trees import write_image

# The EXIF standard's definition: what row 0 and column 0 of the stored image are, in words of the upright one.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}


def read(path: Path) -> np.ndarray:
    return decode_file(path).permute(1, 2, 0).numpy()


def write_turned(path: Path, orientation: int, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif)


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_turned_as_viewers_do(orientation: int, suffix: str, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    write_turned(tmp_path / f"a.{suffix}", orientation, pixels)
    assert np.array_equal(read(tmp_path / f"a.{suffix}"), UPRIGHT[orientation](pixels))


def test_16_bits_are_turned_too(tmp_path: Path) -> None:
    pixels = np.array([[65535, 256, 512], [768, 1024, 1280]], dtype=np.uint16)
    write_turned(tmp_path / "a.png", 6, pixels)
    assert np.array_equal(read(tmp_path / "a.png")[..., 0], UPRIGHT[6](pixels >> 8))


def test_streamed_images_are_turned_by_their_workers(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4] = 255  # the upper half, which becomes the right one
    write_turned(tmp_path / "a.png", 6, pixels)
    files = ImageFiles([str(tmp_path / "a.png")], torch.tensor([0]), size=8, num_workers=1)
    (images,) = files.plain([torch.tensor([0])], lambda images: images)
    assert images[0, :, :, 6:].min() == 255 and images[0, :, :, :2].max() == 0


@pytest.mark.parametrize("orientation", [0, 9])
def test_no_such_orientation_is_upright(orientation: int, tmp_path: Path) -> None:
    image = Image.new("RGB", (3, 2))
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    assert read(tmp_path / "a.png").shape == (2, 3, 3)


def test_other_damage_to_the_exif_does_no_harm(tmp_path: Path) -> None:
    entries = struct.pack("<HHIi", 0x100, 9, 1, -5) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)  # a width of -5
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert read(tmp_path / "a.jpg").shape == (3, 2, 3)


def test_an_open_image_is_turned_like_its_file(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.png", 8, np.arange(18, dtype=np.uint8).reshape(2, 3, 3))
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(rgb_pixels(image), read(tmp_path / "a.png"))


# --- modes ---


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA"])
def test_grey_is_repeated_and_alpha_dropped(mode: str, tmp_path: Path) -> None:
    stored = write_image(tmp_path / "a.png", seed=1, mode=mode)
    colours = stored[..., : 3 if mode == "RGBA" else 1]
    assert np.array_equal(read(tmp_path / "a.png"), np.broadcast_to(colours, (8, 8, 3)))


def test_palette_with_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert read(tmp_path / "a.png").tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_one_bit_is_black_or_white(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").tolist() == [[[255] * 3, [0] * 3]]


def test_cmyk_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)  # red
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame(suffix: str, tmp_path: Path) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], lossless=True)
    assert (read(tmp_path / f"a.{suffix}") == [255, 0, 0]).all()


# --- depth ---


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for suffix in ("png", "tiff"):
        Image.fromarray(values).save(tmp_path / f"a.{suffix}")
        image = decode_file(tmp_path / f"a.{suffix}")
        assert image.dtype == torch.uint8 and image.tolist() == [[[0, 0, 1, 128, 255]]] * 3


def write_tiff(path: Path, bits: int, data: bytes, *, white_is_zero: bool = False, signed: bool = False) -> None:
    """A grey TIFF of two pixels."""
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 0, 277: 1, 278: 1, 279: len(data)}
    entries[339] = 2 if signed else 1
    entries[273] = 8 + 2 + 12 * len(entries) + 4
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + data)


def test_a_tiff_that_says_12_bits_is_scaled_by_them(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", 12, bytes([0xFF, 0xF0, 0x10]))  # 4095, 16
    assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 1]
    write_tiff(tmp_path / "a.tif", 12, bytes([0x01, 0x00, 0x10]))  # 16, 16: dark, and known to be
    assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [1, 1]


def test_a_pgm_is_scaled_by_its_largest_value(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 4095\n" + struct.pack(">3H", 4095, 2048, 16))
    assert read(tmp_path / "a.pgm")[0, :, 0].tolist() == [255, 128, 1]
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + struct.pack(">2H", 0, 160))  # dark, and known to be
    assert read(tmp_path / "a.pgm")[0, :, 0].tolist() == [0, 10]
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 4095\n" + struct.pack(">3H", 4095, 2048, 16))
    assert read(tmp_path / "a.ppm").tolist() == [[[255, 128, 1]]]


def test_white_may_be_zero(tmp_path: Path) -> None:
    for bits, data in ((8, bytes([255, 0])), (16, struct.pack("<2H", 65535, 0))):
        write_tiff(tmp_path / "a.tif", bits, data, white_is_zero=True)
        assert read(tmp_path / "a.tif")[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("largest", [1, 255, 4095])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_12_bits_in_16_are_refused_and_not_read_as_black(largest: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.array([[0, largest]], dtype=np.uint16)).save(path)
    with pytest.raises(UserError, match=rf"use only {largest.bit_length()}, which would be read as nearly black"):
        decode_file(path)


@pytest.mark.parametrize("largest", [0, 4096])
def test_what_is_black_or_dark_is_not_refused(largest: int, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, largest]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png").max() == largest >> 8


def write_png(path: Path, colour_type: int, values: list[int]) -> None:
    """A PNG of one pixel of 16 bits a channel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    data = zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 1), (6, 3)])
def test_16_bit_colours_and_alpha(colour_type: int, channels: int, tmp_path: Path) -> None:
    alpha = [65535] * (colour_type != 2)
    write_png(tmp_path / "a.png", colour_type, [65535] * channels + alpha)
    assert read(tmp_path / "a.png").tolist() == [[[255] * 3]]
    write_png(tmp_path / "a.png", colour_type, [4095] * channels + alpha)
    with pytest.raises(UserError, match="use only 12, which would be read as nearly black"):
        decode_file(tmp_path / "a.png")


def test_a_dark_bitmap_of_5_6_5_bits_is_not_refused(tmp_path: Path) -> None:
    header = b"BM" + struct.pack("<IHHI", 70, 0, 0, 66) + struct.pack("<IiiHHIIiiII", 40, 1, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    (tmp_path / "a.bmp").write_bytes(header + struct.pack("<3I", 0xF800, 0x07E0, 0x001F) + struct.pack("<HH", 1, 0))
    assert read(tmp_path / "a.bmp").tolist() == [[[0, 0, 8]]]


@pytest.mark.parametrize(("bits", "signed", "data"), [(16, True, "<2h"), (32, False, "<2I"), (32, True, "<2i")])
def test_signed_and_32_bit_pixels_are_refused(bits: int, signed: bool, data: str, tmp_path: Path) -> None:
    write_tiff(tmp_path / "a.tif", bits, struct.pack(data, 5, 30000), signed=signed)
    with pytest.raises(UserError, match=r"a\.tif: cannot be decoded \(floating-point, signed and 32-bit pixels"):
        decode_file(tmp_path / "a.tif")
