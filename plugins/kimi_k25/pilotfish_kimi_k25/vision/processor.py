"""KimiImageProcessor: an image's pixels to patches, as the published processor cuts them.

Knows: resizing, padding and normalizing. Does not know: files or prompts. Needs neither
torchvision nor pillow. Letters: P patches, p pixels of a patch's side.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import attrs

from pilotfish.config.checks import int_at_least, is_number
from pilotfish.errors import ConfigError, RequestError
from pilotfish.protocols import ImageFeatures, ImageMemory
from pilotfish.weights.json_file import read_json_object
from pilotfish_kimi_k25.vision.config import VisionConfig

if TYPE_CHECKING:
    import torch

    from pilotfish.config import ModelConfig

_FILES = ("preprocessor_config.json", "processor_config.json")
_SECTIONS = ("media_proc_cfg", "image_processor")
_MUST_BE: Mapping[str, tuple[Any, ...]] = {
    "fixed_output_tokens": (None,),
    "do_resize": (True, None),
    "do_rescale": (True, None),
    "do_normalize": (True, None),
    "do_convert_rgb": (True, None),
    "do_center_crop": (False, None),
    "crop_size": (None,),
    "do_pad": (True, None),
    "pad_size": (None,),
    "rescale_factor": (1 / 255, None),
    "resample": (3, None),
    "input_data_format": ("channels_first", None),
    "data_format": ("channels_first", None),
}
"""Options that change the pixels, and the values that are built; 3 is bicubic."""
_READ = (
    *("patch_size", "merge_kernel_size", "merge_size", "size", "image_mean", "image_std"),
    *("in_patch_limit", "max_patches", "patch_limit_on_one_side"),
)
_OF_NO_MATTER = (
    *("in_patch_limit_each_frame", "in_patch_limit_video", "sample_fps", "timestamp_mode"),
    *("max_num_frames_each_video", "temporal_merge_kernel_size", "do_sample_frames"),
    *("config_type", "auto_map", "processor_class", "image_processor_type", "media_proc_cfg"),
    *("feature_extractor_type", "video_processor_type", "backend", "device", "disable_grouping"),
    *("return_tensors", "model_input_names", "default_to_square", "image_seq_length"),
)
"""Options of video, of how the published code is found, and of how it runs."""

_SLACK = 16
"""How far beyond the colors of pictures preprocessed pixels may go; 0 to 255 as they are do not."""


@attrs.frozen(kw_only=True)
class KimiImageProcessor:
    """Scales an image down where it has too many patches, pads it with black, cuts it.

    vision: the tower's geometry. max_patches: of an image, before padding. max_side: patches of
    its longest side. mean, std: of each color, values from 0 to 1.
    """

    vision: VisionConfig
    max_patches: int = attrs.field(default=16384, validator=int_at_least(1))
    max_side: int = attrs.field(default=512, validator=int_at_least(1))
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def from_checkpoint(cls, config: Any, directory: Path) -> KimiImageProcessor | None:
        """As `of_model` found it when the config was made; None without a tower in the file."""
        del directory
        found = config.image_processor
        assert found is None or isinstance(found, KimiImageProcessor)
        return found

    @classmethod
    def of_model(cls, model: ModelConfig) -> Self | None:
        """Reads the published preprocessor_config.json or transformers' own, if there is one.

        None where the Hugging Face config has no vision_config. Raises ConfigError naming an option
        that is not understood or does not fit the tower.
        """
        vision = VisionConfig.from_hf(model.huggingface_config)
        if vision is None:
            return None
        return cls.from_options(vision, _options_in(Path(model.path)))

    @classmethod
    def from_options(cls, vision: VisionConfig, options: Mapping[str, Any]) -> Self:
        """As `of_model`, from the options themselves."""
        for name, value in options.items():
            known = _MUST_BE.get(name, (None, value))
            if value not in known:
                raise ConfigError(
                    f"the image processor has {name} = {value!r}; wanted {known[0]!r}"
                )
            if name not in {*_MUST_BE, *_READ, *_OF_NO_MATTER} and value is not None:
                raise ConfigError(
                    f"the image processor has {name} = {value!r}, which is not understood and may "
                    "change the pixels; wanted options of the published processor only"
                )
        fits = {
            "patch_size": (vision.patch_size,),
            "merge_kernel_size": (vision.merge_rows, (vision.merge_rows, vision.merge_columns)),
            "merge_size": (vision.merge_rows,),
        }
        for name, wanted in fits.items():
            value = options.get(name, wanted[0])
            value = tuple(value) if isinstance(value, list) else value
            if value not in wanted:
                raise ConfigError(
                    f"the image processor has {name} = {value!r} and the tower {wanted[0]!r}; "
                    "wanted files of one checkpoint"
                )
        return cls(
            vision=vision,
            max_patches=options.get("in_patch_limit", options.get("max_patches", 16384)),
            max_side=options.get("patch_limit_on_one_side", _side_in(options)),
            mean=_colors("image_mean", options.get("image_mean", (0.5, 0.5, 0.5))),
            std=_colors("image_std", options.get("image_std", (0.5, 0.5, 0.5)), above=0.0),
        )

    @property
    def placeholder_token_id(self) -> int:
        """The token that stands for an image."""
        return self.vision.image_token_id

    @property
    def unserved_token_ids(self) -> Mapping[str, int]:
        """Video has a placeholder of its own."""
        video = self.vision.video_token_id
        return {} if video is None else {"video": video}

    @property
    def placeholders(self) -> Mapping[str, int]:
        """Every kind of input that has a placeholder, with its token."""
        return {"image": self.placeholder_token_id, **self.unserved_token_ids}

    @property
    def largest_image(self) -> int:
        """Patches that no image has more of, padding included.

        Scaling counts whole patches only, so a side may end with part of one more, and padding
        takes it to a multiple of the merge.
        """
        merges = (self.vision.merge_rows, self.vision.merge_columns)
        sides = [-(-self.max_side // merge) * merge for merge in merges]
        most = max(merges)
        return min(
            math.prod(sides), self.max_patches + (2 + 2 * most) * self.max_side + (most + 2) ** 2
        )

    @property
    def _largest_pixel(self) -> float:
        """What no normalized color reaches, with some slack."""
        pairs = zip(self.mean, self.std, strict=True)
        return _SLACK * max(max(abs(mean), abs(1 - mean)) / std for mean, std in pairs)

    def memory(self, itemsize: int) -> ImageMemory:
        """What images take; itemsize: bytes of a number of the run's dtype."""
        vision, num_patches = self.vision, self.largest_image
        return ImageMemory(
            bytes_per_token=vision.text_hidden_size * itemsize,
            max_tokens=num_patches // (vision.merge_rows * vision.merge_columns),
            max_patches=num_patches,
            pass_bytes=vision.pass_bytes(num_patches, itemsize),
        )

    def sizes(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels of an image -> those of the resized one, and those of the padded one.

        It is never enlarged. Source: the published processor's rule (NaViT, Dehghani et al. 2023).
        """
        side, longest = self.vision.patch_size, self.max_side * self.vision.patch_size
        num_patches = max(1, height // side) * max(1, width // side)
        scale = min(
            1.0, math.sqrt(self.max_patches / num_patches), longest / height, longest / width
        )
        merges = (self.vision.merge_rows, self.vision.merge_columns)
        resized = [min(max(1, int(pixels * scale)), longest) for pixels in (height, width)]
        padded = [
            -(-pixels // (merge * side)) * merge * side
            for pixels, merge in zip(resized, merges, strict=True)
        ]
        return (resized[0], resized[1]), (padded[0], padded[1])

    def grid_of(self, height: int, width: int) -> tuple[int, int, int]:
        """The patches of an image of so many pixels, padding included."""
        _, padded = self.sizes(height, width)
        return (1, padded[0] // self.vision.patch_size, padded[1] // self.vision.patch_size)

    def preprocess(self, pixels: torch.Tensor) -> ImageFeatures:
        """pixels: [3, height, width] uint8 -> pixel_values [P, 3, p, p] float32 and the grid."""
        import torch

        resized, padded = self.sizes(pixels.shape[1], pixels.shape[2])
        if tuple(pixels.shape[1:]) != resized:
            pixels = torch.nn.functional.interpolate(
                pixels[None], size=resized, mode="bicubic", antialias=True
            )[0]
        edges = (0, padded[1] - resized[1], 0, padded[0] - resized[0])
        values = torch.nn.functional.pad(pixels, edges).float()
        mean, std = (
            torch.tensor(colors).mul(255).view(3, 1, 1) for colors in (self.mean, self.std)
        )
        values = values.sub_(mean).div_(std)
        side = self.vision.patch_size
        rows, columns = padded[0] // side, padded[1] // side
        patches = values.view(3, rows, side, columns, side).permute(1, 3, 0, 2, 4)
        return ImageFeatures(
            pixel_values=patches.reshape(rows * columns, 3, side, side),
            grid_thw=(1, rows, columns),
        )

    def check(self, features: ImageFeatures) -> None:
        """Raises RequestError when patches from elsewhere do not fit the tower."""
        _, rows, columns = features.grid_thw
        vision = self.vision
        wanted = [rows * columns, 3, vision.patch_size, vision.patch_size]
        if list(features.pixel_values.shape) != wanted:
            raise RequestError(
                f"pixel_values is {list(features.pixel_values.shape)}; wanted {wanted}"
            )
        if rows % vision.merge_rows or columns % vision.merge_columns:
            raise RequestError(
                f"grid_thw is {list(features.grid_thw)}; wanted rows in multiples of "
                f"{vision.merge_rows} and columns of {vision.merge_columns}"
            )
        largest = float(features.pixel_values.abs().amax())
        if largest > self._largest_pixel:
            raise RequestError(
                f"pixel_values go to {largest:g}; wanted colors normalized by image_mean and "
                f"image_std, which go to {self._largest_pixel / _SLACK:g}"
            )
        if rows * columns > self.largest_image:
            raise RequestError(
                f"grid_thw is {list(features.grid_thw)}, {rows * columns} patches; wanted at most "
                f"{self.largest_image}: resize the image"
            )

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Placeholder tokens of an image."""
        return self.vision.num_tokens(grid_thw)


def _options_in(directory: Path) -> Mapping[str, Any]:
    """The options of the first file that has any; its section for images where it has one."""
    for name in _FILES:
        path = Path(directory) / name
        if not path.is_file():
            continue
        options = read_json_object(path)
        for section in _SECTIONS:
            found = options.get(section)
            if isinstance(found, dict):
                return found
        if name == _FILES[0]:
            return options
    return {}


def _side_in(options: Mapping[str, Any]) -> int:
    """Patches of the longest side, from `size`."""
    size = {} if options.get("size") is None else options["size"]
    known = ("max_height", "max_width")
    given = isinstance(size, Mapping) and all(
        name in known or value is None for name, value in size.items()
    )
    sides = {size.get(name, 512) for name in known} if given else set()
    if len(sides) != 1:
        raise ConfigError(
            f"the image processor has size {size!r}; wanted equal sides, max_height and max_width"
        )
    side: int = sides.pop()
    return side


def _colors(name: str, value: Any, *, above: float = -math.inf) -> tuple[float, ...]:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(is_number(number) and number > above for number in value)
    ):
        wanted = "three numbers" if above < 0 else f"three numbers > {above:g}"
        raise ConfigError(f"the image processor has {name} = {value!r}; wanted {wanted}")
    return tuple(float(number) for number in value)
