"""Images as callers give them -> red, green and blue in 8 bits, or one clear refusal.

Knows: paths, PIL images and what may be wrong with them. Does not know: models or towers.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pilotfish.errors import ConfigError, RequestError

if TYPE_CHECKING:
    import torch

MAX_PIXELS = 1 << 27
"""Pixels of the largest image: 134 million, 0.4 GB decoded."""
_VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")


def read_pixels(image: Any, name: str) -> torch.Tensor:
    """image: a path or a PIL image -> [3, H, W] uint8, upright as its EXIF data says.

    Transparency is dropped, as the published processors do. name: of the image in messages.
    Raises RequestError for anything that is no readable, single, sensibly large image; ConfigError
    when pillow is not installed.
    """
    import torch

    pil = _pil()
    if isinstance(image, str | Path):
        with _opened(pil, image, name) as opened:
            rgb = _decoded(pil, opened, f"{name} ({image})")
    elif isinstance(image, pil.Image.Image):
        rgb = _decoded(pil, image, name)
    else:
        raise RequestError(
            f"{name} is {type(image).__name__}; wanted a path, a PIL image, or one preprocessed: "
            "pixel_values with grid_thw"
        )
    pixels = np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(pixels))


def _pil() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ConfigError(
            "reading images needs pillow, which is not installed: pip install 'pilotfish[images]'"
        ) from error
    return PIL


def _opened(pil: Any, path: str | Path, name: str) -> Any:
    text = str(path)
    if "://" in text or text.startswith("data:"):
        raise RequestError(f"{name} is {text[:60]!r}; wanted a file on disk: fetch it first")
    if text.lower().endswith(_VIDEO_SUFFIXES):
        raise RequestError(f"{name} ({text}) is a video, which is not served; wanted an image")
    if not Path(text).expanduser().is_file():
        raise RequestError(f"{name} ({text}): no such file; wanted an image file")
    try:
        with warnings.catch_warnings():  # the limit on the size is ours, see MAX_PIXELS
            warnings.simplefilter("ignore", pil.Image.DecompressionBombWarning)
            return pil.Image.open(Path(text).expanduser())
    except pil.Image.DecompressionBombError as error:
        raise RequestError(
            f"{name} ({text}) is too large: {error}; wanted at most {MAX_PIXELS} pixels"
        ) from error
    except Exception as error:  # each format has its own exceptions
        raise RequestError(
            f"{name} ({text}) cannot be read as an image: {error}; wanted a file that pillow reads"
        ) from error


def _decoded(pil: Any, image: Any, name: str) -> Any:
    """An RGB image whose pixels are read."""
    width, height = image.size
    if not width or not height:
        raise RequestError(f"{name} is {width} x {height} pixels; wanted at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{name} is {width} x {height} pixels; wanted at most {MAX_PIXELS} in all: resize it"
        )
    if getattr(image, "n_frames", 1) > 1:
        raise RequestError(
            f"{name} has {image.n_frames} frames, and video is not served; wanted one image: "
            "choose a frame"
        )
    if image.mode not in _MODES:
        raise RequestError(
            f"{name} has pixels of mode {image.mode!r}; wanted 8 bits a channel: convert it"
        )
    try:
        return pil.ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # each format has its own exceptions
        raise RequestError(f"{name} is corrupt: {error}; wanted a whole image") from error
