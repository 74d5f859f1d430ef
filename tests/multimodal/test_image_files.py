"""Image files that are damaged, odd or too large: an image, or one RequestError; never another."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pilotfish.errors import RequestError
from pilotfish.multimodal import files as image_files
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.protocols import ImageFeatures
from support.pictures import picture
from support.toy_images import PLACEHOLDER, ToyImageProcessor

pytestmark = pytest.mark.usefixtures("one_thread")


def encoded(format: str, num_frames: int) -> bytes:
    frames = [picture(24, 18, seed) for seed in range(num_frames)]
    out = io.BytesIO()
    several = {"save_all": True, "append_images": frames[1:]} if num_frames > 1 else {}
    frames[0].save(out, format, **several)
    return out.getvalue()


FILES = {
    (format, count): encoded(format, count)
    for format, count in (
        *(("GIF", 1), ("GIF", 3), ("TIFF", 1), ("TIFF", 3), ("WEBP", 1), ("WEBP", 3)),
        *(("PNG", 1), ("PNG", 3), ("JPEG", 1), ("MPO", 2)),
    )
}


@settings(max_examples=400)
@given(
    kind=st.sampled_from(sorted(FILES)),
    share=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.99), st.integers(0, 255)), max_size=2),
)
def test_a_damaged_file_is_an_image_or_refused(
    kind: tuple[str, int],
    share: float,
    damage: list[tuple[float, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(FILES[kind][: int(share * len(FILES[kind]))])
    for place, value in damage if data else ():
        data[int(place * len(data))] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for image in (path, opened(path)):
            said, pixels = "", None
            try:
                pixels = image_files.read_pixels(image, "it")
            except RequestError as error:
                said = str(error)
            if pixels is None:
                assert said.startswith("it ")
                assert "\n" not in said
            else:
                assert pixels.dtype == torch.uint8
                assert pixels.shape[0] == 3


def opened(path: Path) -> Any:
    """A PIL image of the file, whose pixels are not read; the path where there is none."""
    try:
        return Image.open(io.BytesIO(path.read_bytes()))
    except Exception:
        return path


@pytest.mark.parametrize(
    "path", ["~nosuchuser/x.png", "x" * 5000, "a/" * 3000, "x\0.png", "x\ny.png"]
)
def test_a_path_that_cannot_be_one_is_refused_in_a_short_line(path: str) -> None:
    with pytest.raises(RequestError, match="wanted an image file") as refusal:
        image_files.read_pixels(path, "image 0")
    assert len(str(refusal.value)) < 400
    assert "\n" not in str(refusal.value)


def test_a_path_that_may_not_be_looked_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_file(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_file", is_file)
    with pytest.raises(RequestError, match=r"secret.png\) cannot be read: Permission denied"):
        image_files.read_pixels("secret.png", "image 0")


def test_a_photograph_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(FILES["MPO", 2])
    assert Image.open(path).n_frames == 2  # type: ignore[attr-defined]
    alone = np.asarray(Image.open(io.BytesIO(encoded("JPEG", 1)))).transpose(2, 0, 1)
    assert torch.equal(image_files.read_pixels(path, "it"), torch.from_numpy(alone.copy()))


@pytest.mark.parametrize("mode", image_files._MODES)
def test_every_mode_that_is_taken_can_be_decoded(mode: str) -> None:
    assert image_files.read_pixels(Image.new(mode, (3, 2)), "it").shape == (3, 2, 3)


# Preprocessed images


def admission(max_seq_len: int = 64, **options: Any) -> ImageAdmission:
    return ImageAdmission(
        architecture="Toy", processor=ToyImageProcessor(), max_seq_len=max_seq_len, **options
    )


ONES = torch.ones(4, 1)


@pytest.mark.parametrize(
    ("pixels", "grid", "said"),
    [
        (ONES, (2, 2), "wanted three whole numbers"),
        (ONES, "ab", "grid_thw 'ab'; wanted three whole numbers"),
        (ONES, None, "grid_thw None; wanted three whole numbers"),
        (ONES, (1, 2**70, 2), "image 0 has"),
        (ONES.to("meta"), (1, 2, 2), "no dense tensor"),
        (ONES.to_sparse(), (1, 2, 2), "no dense tensor"),
        (None, (1, 2, 2), "pixel_values of type NoneType without numbers"),
        (np.array([["a"]]), (1, 2, 2), "pixel_values of type ndarray without numbers"),
        (ONES.double() * 1e300, (1, 2, 2), "with NaN or infinity; wanted finite floats"),
        (np.full((4, 1), 1e300), (1, 2, 2), "with NaN or infinity; wanted finite floats"),
        (ONES, torch.ones(3, dtype=torch.int64, device="meta"), "wanted three whole numbers"),
    ],
)
def test_wrong_features_are_refused_in_both_forms(pixels: Any, grid: Any, said: str) -> None:
    for image in (
        ImageFeatures(pixel_values=pixels, grid_thw=grid),
        {"pixel_values": pixels, "grid_thw": grid},
    ):
        with pytest.raises(RequestError, match=said) as refusal:
            admission().place([PLACEHOLDER], [image])
        assert "\n" not in str(refusal.value)


def test_features_of_numpy_are_taken() -> None:
    image = ImageFeatures(pixel_values=np.ones((4, 1)), grid_thw=[1, 2, 2])  # type: ignore[arg-type]
    tokens, (placed,) = admission().place([PLACEHOLDER], [image])
    assert len(tokens) == 4
    assert placed.features.pixel_values.dtype == torch.float32
    assert placed.features.grid_thw == (1, 2, 2)


# What does not fit, and what is shared


def test_images_that_do_not_fit_are_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "_decoded", None)
    picture(80, 40).save(tmp_path / "a.png")
    images = [tmp_path / "a.png", picture(40, 40)]
    with pytest.raises(RequestError, match=r"77 tokens, of which its 2 images take 75; wanted at"):
        admission().place([1, PLACEHOLDER, 2, PLACEHOLDER], images)


def test_requests_share_the_pixels_of_one_image(tmp_path: Path) -> None:
    picture(16, 8).save(tmp_path / "a.png")
    desk = admission()
    images = [tmp_path / "a.png", picture(16, 8), picture(16, 8, 1)]
    placed = [desk.place([PLACEHOLDER] * 3, images)[1] for _ in range(20)]
    assert len({id(image.features) for images in placed for image in images}) == 2
    del placed
    assert len(desk._held) == 0, "nothing is kept for requests that are gone"


def test_placeholders_without_a_tower_are_refused_by_name() -> None:
    desk = ImageAdmission(
        architecture="Toy", max_seq_len=64, unserved_token_ids={"image": 7, "video": 9}
    )
    assert desk.placeholder_ids == {7, 9}
    with pytest.raises(RequestError, match=r"for image \(token id 7\), which is not served"):
        desk.place([1, 7], [])
    assert desk.place([1, 2], []) == ([1, 2], ())
