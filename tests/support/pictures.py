"""Pictures for tests, and every kind of file or object that is no picture."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from PIL import Image


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    drawn = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn)


def png_header(width: int, height: int) -> bytes:
    """The beginning of a file that claims a size; its pixels are never read."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"")


def wrong_images(folder: Path) -> dict[str, tuple[Any, str]]:
    """name -> (an image, what the refusal says)."""
    picture(8, 8).save(folder / "good.png")
    whole = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.png").write_bytes(b"no image at all")
    (folder / "clip.mp4").write_bytes(b"")
    frames = [picture(8, 8, seed) for seed in range(3)]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    (folder / "large.png").write_bytes(png_header(16384, 9000))
    (folder / "huge.png").write_bytes(png_header(65000, 65000))
    os.mkfifo(folder / "pipe")
    good = torch.ones(4, 1)
    return {
        "missing": (folder / "nothing.png", "no such file"),
        "folder": (folder, "is a directory; wanted an image file"),
        "pipe": (folder / "pipe", "is no regular file; wanted an image file"),
        "address": ("https://example.org/a.png", "wanted a file on disk"),
        "cut": (folder / "cut.png", "is corrupt"),
        "noise": (folder / "noise.png", "cannot be read as an image"),
        "video": (folder / "clip.mp4", "video, which is not served"),
        "frames": (folder / "film.gif", "3 frames, and video is not served"),
        "empty": (Image.new("RGB", (0, 4)), "0 x 4 pixels; wanted at least 1 x 1"),
        "large": (folder / "large.png", "16384 x 9000 pixels; wanted at most 134217728"),
        "huge": (folder / "huge.png", "is too large"),
        "deep": (Image.new("I;16", (4, 4)), "mode 'I;16'"),
        "kind": (7, "image 0 is int; wanted a path"),
        "grid": ({"pixel_values": good, "grid_thw": [1, 3, 3]}, "one item for each"),
        "no grid": ({"pixel_values": good}, "wanted pixel_values and grid_thw"),
        "null grid": ({"pixel_values": good, "grid_thw": None}, "grid_thw None; wanted three"),
        "word grid": ({"pixel_values": good, "grid_thw": "1,2"}, "grid_thw '1,2'; wanted three"),
        "flag grid": ({"pixel_values": good, "grid_thw": [True, 2, 2]}, "grid_thw [True, 2, 2]"),
        "float grid": ({"pixel_values": good, "grid_thw": [1, 2.0, 2]}, "three whole numbers"),
        "two grids": ({"pixel_values": good, "grid_thw": [[1, 2, 2]] * 2}, "of one image"),
        "clip": ({"pixel_values": good, "grid_thw": [2, 1, 2]}, "2 frames, and video"),
        "infinite": ({"pixel_values": good / 0, "grid_thw": [1, 2, 2]}, "with NaN or infinity"),
        "whole": ({"pixel_values": good.int(), "grid_thw": [1, 2, 2]}, "of int32; wanted finite"),
        "bits": ({"pixel_values": good.bool(), "grid_thw": [1, 2, 2]}, "of bool; wanted finite"),
        "words": ({"pixel_values": "ab", "grid_thw": [1, 2, 2]}, "of type str without numbers"),
        "tower": ({"pixel_values": torch.ones(4, 3), "grid_thw": [1, 2, 2]}, "wanted [P, 1]"),
    }
