"""The image processor: published sizes, pixels within a grey level of pillow's, options read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kimi_k25.towers import PUBLISHED, hf_config, image, published_config
from pilotfish.config import ModelConfig
from pilotfish.errors import ConfigError, RequestError
from pilotfish.protocols import ImageFeatures
from pilotfish.weights.hf_config import PlainConfig
from pilotfish_kimi_k25.vision.config import VisionConfig
from pilotfish_kimi_k25.vision.processor import KimiImageProcessor

VISION = VisionConfig(
    hidden_size=24,
    num_heads=2,
    num_layers=1,
    intermediate_size=8,
    text_hidden_size=8,
    image_token_id=3,
)

# height, width, most patches, longest side in patches -> resized, padded. From transformers 5.23.
SIZES = [
    (1, 1, 16384, 512, (1, 1), (28, 28)),
    (13, 29, 16384, 512, (13, 29), (28, 56)),
    (28, 28, 16384, 512, (28, 28), (28, 28)),
    (29, 27, 16384, 512, (29, 27), (56, 28)),
    (480, 640, 16384, 512, (480, 640), (504, 644)),
    (1080, 1920, 16384, 512, (1080, 1920), (1092, 1932)),
    (3000, 4000, 16384, 512, (1554, 2073), (1568, 2100)),
    (27, 9000, 16384, 512, (21, 7168), (28, 7168)),
    (9000, 27, 16384, 512, (7168, 21), (7168, 28)),
    (2000, 2000, 100, 512, (140, 140), (140, 140)),
    (300, 200, 64, 512, (139, 93), (140, 112)),
    (33, 1000, 16384, 16, (7, 224), (28, 224)),
    (1000, 33, 50, 7, (98, 3), (112, 28)),
    (555, 777, 33, 9, (68, 96), (84, 112)),
]


@pytest.mark.parametrize("row", SIZES, ids=lambda row: f"{row[0]}x{row[1]} {row[2]} {row[3]}")
def test_sizes_are_the_published_ones(row: Any) -> None:
    height, width, most, side, resized, padded = row
    processor = KimiImageProcessor(vision=VISION, max_patches=most, max_side=side)
    assert processor.sizes(height, width) == (resized, padded)


@given(
    height=st.integers(1, 5000),
    width=st.integers(1, 5000),
    most=st.integers(1, 400),
    side=st.integers(1, 64),
    merges=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@example(height=5000, width=5000, most=400, side=3, merges=(2, 3))
def test_no_image_has_more_patches_than_the_plan_says(
    height: int, width: int, most: int, side: int, merges: tuple[int, int]
) -> None:
    import attrs

    vision = attrs.evolve(VISION, merge_rows=merges[0], merge_columns=merges[1])
    processor = KimiImageProcessor(vision=vision, max_patches=most, max_side=side)
    _, (high, wide) = processor.sizes(height, width)
    assert high % (14 * merges[0]) == wide % (14 * merges[1]) == 0
    assert processor.grid_of(height, width) == (1, high // 14, wide // 14)
    assert (high // 14) * (wide // 14) <= processor.largest_image
    memory = processor.memory(2)
    assert (high // 14 // merges[0]) * (wide // 14 // merges[1]) <= memory.max_tokens
    assert memory.max_patches == processor.largest_image


@pytest.mark.parametrize(("height", "width"), [(100, 90), (31, 200), (20, 20)])
def test_pixels_are_within_a_grey_level_of_pillows(height: int, width: int) -> None:
    """The published processor resizes with pillow; both round to whole levels, each in its way."""
    processor = KimiImageProcessor(vision=VISION, max_patches=12, max_side=9)
    pixels = image(height, width)
    features = processor.preprocess(pixels)
    (high, wide), (rows, columns) = processor.sizes(height, width)
    assert features.grid_thw == (1, rows // 14, columns // 14)
    assert features.pixel_values.dtype == torch.float32
    whole = (
        features.pixel_values.view(rows // 14, columns // 14, 3, 14, 14)
        .permute(2, 0, 3, 1, 4)
        .reshape(3, rows, columns)
    )
    levels = (whole * 0.5 + 0.5) * 255
    pil = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    theirs = np.asarray(pil.resize((wide, high), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    gap = levels[:, :high, :wide] - torch.from_numpy(theirs.astype(np.float32))
    assert gap.abs().max() < 1.001
    if (high, wide) == (height, width):
        assert gap.abs().max() < 1e-4, "an image that fits is not resized"
    assert levels[:, high:].abs().max() < 1e-4 if high < rows else True, "padded with black"
    assert levels[:, :, wide:].abs().max() < 1e-4 if wide < columns else True


def test_colors_have_their_own_mean_and_deviation() -> None:
    processor = KimiImageProcessor(vision=VISION, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    pixels = torch.full((3, 28, 28), 51, dtype=torch.uint8)
    found = processor.preprocess(pixels).pixel_values
    wanted = [
        (0.2 - mean) / std for mean, std in zip((0.1, 0.2, 0.3), (0.5, 0.25, 0.125), strict=True)
    ]
    assert found.shape == (4, 3, 14, 14)
    for color, value in enumerate(wanted):
        assert torch.allclose(found[:, color], torch.tensor(value), atol=1e-6)


def test_patches_go_row_by_row() -> None:
    pixels = torch.zeros(3, 28, 56, dtype=torch.uint8)
    pixels[:, 14:, 14:28] = 255
    found = KimiImageProcessor(vision=VISION).preprocess(pixels)
    assert found.grid_thw == (1, 2, 4)
    assert found.pixel_values.amax((1, 2, 3)).tolist() == [-1, -1, -1, -1, -1, 1, -1, -1]


def test_neither_torchvision_nor_pillow_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("PIL", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
    processor = KimiImageProcessor(vision=VISION, max_patches=8)
    (high, wide), padded = processor.sizes(90, 70)
    assert (high, wide) != (90, 70)
    found = processor.preprocess(image(90, 70))
    assert found.grid_thw == (1, padded[0] // 14, padded[1] // 14)


# Options


def model_config(folder: Path, values: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        model="m",
        path=str(folder),
        weight_format="safetensors",
        huggingface_config=PlainConfig(values),
    )


OPTIONS = {
    "preprocessor_config.json, published": (
        "preprocessor_config.json",
        {
            "media_proc_cfg": {
                "in_patch_limit": 99,
                "patch_limit_on_one_side": 7,
                "patch_size": 4,
                "merge_kernel_size": 2,
                "fixed_output_tokens": None,
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [0.4, 0.5, 0.6],
                "in_patch_limit_video": 3,
            }
        },
    ),
    "preprocessor_config.json, transformers": (
        "preprocessor_config.json",
        {
            "max_patches": 99,
            "size": {"max_height": 7, "max_width": 7},
            "patch_size": 4,
            "merge_size": 2,
            "image_mean": [0.1, 0.2, 0.3],
            "image_std": [0.4, 0.5, 0.6],
            "do_resize": True,
            "resample": 3,
            "rescale_factor": 1 / 255,
        },
    ),
}
OPTIONS["processor_config.json, transformers"] = (
    "processor_config.json",
    {"image_processor": OPTIONS["preprocessor_config.json, transformers"][1]},
)


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_read_from_both_kinds_of_files(name: str, tmp_path: Path) -> None:
    file, options = OPTIONS[name]
    (tmp_path / file).write_text(json.dumps(options))
    found = KimiImageProcessor.of_model(model_config(tmp_path, published_config(hf_config())))
    assert found is not None
    assert (found.max_patches, found.max_side) == (99, 7)
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.placeholder_token_id == 90


def test_without_a_file_the_published_options_hold(tmp_path: Path) -> None:
    found = KimiImageProcessor.of_model(model_config(tmp_path, published_config(hf_config())))
    assert found is not None
    assert (found.max_patches, found.max_side, found.mean) == (16384, 512, (0.5,) * 3)
    assert KimiImageProcessor.of_model(model_config(tmp_path, {"model_type": "x"})) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fixed_output_tokens": 5}, "fixed_output_tokens = 5"),
        ({"do_resize": False}, "do_resize = False"),
        ({"do_normalize": False}, "do_normalize = False"),
        ({"resample": 2}, "resample = 2"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0"),
        ({"patch_size": 16}, "patch_size = 16 and the tower 14"),
        ({"merge_kernel_size": 4}, "merge_kernel_size = 4"),
        ({"merge_size": 1}, "merge_size = 1"),
        ({"size": {"max_height": 3, "max_width": 4}}, "wanted equal sides"),
        ({"image_mean": [0.5, 0.5]}, "image_mean = \\[0.5, 0.5\\]"),
        ({"image_std": "half"}, "image_std = 'half'"),
        ({"image_std": [0.5, 0, 0.5]}, "wanted three numbers > 0"),
        ({"image_std": [0.5, -0.5, 0.5]}, "wanted three numbers > 0"),
        ({"image_mean": [0.5, True, 0.5]}, "wanted three numbers"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "wanted three numbers"),
        ({"size": 5}, "size 5; wanted equal sides"),
        ({"size": {"height": 5, "width": 5}}, "wanted equal sides"),
        ({"size": {"shortest_edge": 5}}, "wanted equal sides"),
        ({"do_center_crop": True}, "do_center_crop = True; wanted False"),
        ({"crop_size": {"height": 8, "width": 8}}, "crop_size"),
        ({"do_pad": False}, "do_pad = False; wanted True"),
        ({"do_convert_rgb": False}, "do_convert_rgb = False"),
        ({"do_swirl": 1}, "do_swirl = 1, which is not understood"),
        ({"max_patches": 0}, "max_patches is 0"),
    ],
)
def test_options_that_change_pixels_are_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        KimiImageProcessor.from_options(VISION, options)


def test_a_count_of_the_tower_is_refused_by_the_name_it_has_in_the_file() -> None:
    for name in PUBLISHED:
        for key in (name, PUBLISHED[name]):
            whole = published_config(hf_config())
            del whole["vision_config"][PUBLISHED[name]]
            whole["vision_config"][key] = -1
            with pytest.raises(ConfigError, match=rf"vision_config has {key} = -1; wanted a whole"):
                VisionConfig.from_hf(PlainConfig(whole))
    for section, name, value in (
        ("vision_config", "init_pos_emb_time", -1),
        ("vision_config", "patch_size", 0),
        ("vision_config", "merge_kernel_size", [0, 2]),
        ("vision_config", "projector_ln_eps", 0.0),
        (None, "media_placeholder_token_id", -1),
        (None, "projection_hidden_act", "relu"),
    ):
        whole = published_config(hf_config())
        (whole if section is None else whole[section])[name] = value
        whose = section or "the checkpoint's config"
        with pytest.raises(ConfigError, match=re.escape(f"{whose} has {name} = {value!r}")):
            VisionConfig.from_hf(PlainConfig(whole))


@pytest.mark.parametrize(
    "option",
    [
        {"num_channels": 1},
        {"qkv_bias": False},
        {"layer_norm_eps": 1e-6},
        {"rope_theta": 5.0},
        {"use_qk_norm": True},
        {"window_size": 4},
        {"rope_scaling": {"factor": 2}},
    ],
)
def test_options_of_the_tower_that_are_not_read_are_refused(option: dict[str, Any]) -> None:
    whole = published_config(hf_config())
    whole["vision_config"] |= option
    ((name, value),) = option.items()
    with pytest.raises(ConfigError, match=f"vision_config has {name} = {value}, which is not"):
        VisionConfig.from_hf(PlainConfig(whole))


@pytest.mark.parametrize(
    ("grid", "shape", "said"),
    [
        ((1, 2, 2), (4, 3, 16, 16), "wanted \\[4, 3, 14, 14\\]"),
        ((1, 3, 2), (6, 3, 14, 14), "wanted rows in multiples of 2"),
        ((1, 2, 1), (2, 3, 14, 14), "wanted rows in multiples of 2"),
        ((1, 40, 20), (800, 3, 14, 14), "800 patches; wanted at most"),
    ],
)
def test_patches_from_elsewhere_are_checked(
    grid: tuple[int, int, int], shape: tuple[int, ...], said: str
) -> None:
    processor = KimiImageProcessor(vision=VISION, max_patches=64, max_side=16)
    features = ImageFeatures(pixel_values=torch.zeros(shape), grid_thw=grid)
    with pytest.raises(RequestError, match=said):
        processor.check(features)
    for largest in (255.0, -1e30):
        bad = ImageFeatures(pixel_values=torch.full((4, 3, 14, 14), largest), grid_thw=(1, 2, 2))
        with pytest.raises(RequestError, match="wanted colors normalized by image_mean and image_"):
            processor.check(bad)
    good = ImageFeatures(pixel_values=torch.ones(8, 3, 14, 14), grid_thw=(1, 2, 4))
    processor.check(good)
    assert processor.num_tokens(good.grid_thw) == 2
