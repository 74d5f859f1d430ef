"""Images as callers give them -> red, green and blue in 8 bits, or one clear refusal.

Knows: paths, PIL images and what may be wrong with them. Does not know: models or towers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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
    with _opened(pil, image, name) as (opened, named):
        rgb = _decoded(pil, opened, named)
    pixels = np.asarray(rgb, dtype=np.uint8).transpose(2, 0, 1)
    return torch.from_numpy(pixels.copy())  # pillow's own bytes are not to be written to


def read_size(image: Any, name: str) -> tuple[int, int]:
    """As `read_pixels` -> (height, width) as stored, not turned upright; decodes nothing."""
    with _opened(_pil(), image, name) as (opened, _):
        width, height = opened.size
    return height, width


def check_path(path: str | Path, name: str) -> Path:
    """The file that a path names. Raises RequestError for an address, a video, no file."""
    text, named = str(path), _named(name, path)
    if "://" in text or text.startswith("data:"):
        raise RequestError(f"{name} is {text[:60]!r}; wanted a file on disk: fetch it first")
    if text.lower().endswith(_VIDEO_SUFFIXES):
        raise RequestError(f"{named} is a video, which is not served; wanted an image")
    try:
        file = Path(text).expanduser()
        is_there, is_file = file.exists(), file.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, not allowed
        why = getattr(error, "strerror", None) or error
        raise RequestError(f"{named} cannot be read: {why}; wanted an image file") from error
    if is_there and not is_file:
        what = "a directory" if file.is_dir() else "no regular file"
        raise RequestError(f"{named} is {what}; wanted an image file")
    if not is_file:
        raise RequestError(f"{named}: no such file; wanted an image file")
    return file


def _named(name: str, path: str | Path) -> str:
    """The image with its path, short and on one line."""
    text = str(path)
    text = text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"
    return f"{name} ({text if text.isprintable() else repr(text)})"


def _pil() -> Any:
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError as error:
        raise ConfigError(
            "reading images needs pillow, which is not installed: pip install 'pilotfish[images]'"
        ) from error
    return PIL


@contextmanager
def _opened(pil: Any, image: Any, name: str) -> Iterator[tuple[Any, str]]:
    """A PIL image that passed every check short of decoding it, and its name in messages."""
    if isinstance(image, str | Path):
        file, named = check_path(image, name), _named(name, image)
        with _open_file(pil, file, named) as opened:
            _check(opened, named)
            yield opened, named
    elif isinstance(image, pil.Image.Image):
        _check(image, name)
        yield image, name
    else:
        raise RequestError(
            f"{name} is {type(image).__name__}; wanted a path, a PIL image, or one preprocessed: "
            "pixel_values with grid_thw"
        )


def _open_file(pil: Any, file: Path, name: str) -> Any:
    try:
        with warnings.catch_warnings():  # the limit on the size is ours, see MAX_PIXELS
            warnings.simplefilter("ignore", pil.Image.DecompressionBombWarning)
            return pil.Image.open(file)
    except pil.Image.DecompressionBombError as error:
        raise RequestError(
            f"{name} is too large: {error}; wanted at most {MAX_PIXELS} pixels"
        ) from error
    except Exception as error:  # each format has its own exceptions
        raise RequestError(
            f"{name} cannot be read as an image: {error}; wanted a file that pillow reads"
        ) from error


def _check(image: Any, name: str) -> None:
    """Raises RequestError for an image that is not to be decoded."""
    try:
        (width, height), mode = image.size, image.mode
        # The further pictures of such a photograph are previews of its first.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    except Exception as error:  # counting frames reads the file: each format has its exceptions
        raise _corrupt(name, error) from error
    if not width or not height:
        raise RequestError(f"{name} is {width} x {height} pixels; wanted at least 1 x 1")
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{name} is {width} x {height} pixels; wanted at most {MAX_PIXELS} in all: resize it"
        )
    if frames > 1:
        raise RequestError(
            f"{name} has {frames} frames, and video is not served; wanted one image: choose a frame"
        )
    if mode not in _MODES:
        raise RequestError(
            f"{name} has pixels of mode {mode!r}; wanted 8 bits a channel: convert it"
        )


def _decoded(pil: Any, image: Any, name: str) -> Any:
    """An RGB image whose pixels are read."""
    try:
        upright = pil.ImageOps.exif_transpose(image)
        if upright.mode == "La":  # which pillow converts to nothing else
            upright = upright.convert("LA")
        return upright.convert("RGB")
    except Exception as error:  # each format has its own exceptions
        raise _corrupt(name, error) from error


def _corrupt(name: str, error: Exception) -> RequestError:
    return RequestError(f"{name} is corrupt: {error}; wanted a whole image")
