"""VisionConfig: the validated configuration of the vision tower and its projector.

Knows: both spellings of a checkpoint's options, the published one and transformers'. Does not know:
tensors; imports no torch. Letters: D tower width, P patches.
"""

from __future__ import annotations

from typing import Any, Self

import attrs

from pilotfish.config.checks import int_at_least, is_int, norm_epsilon, number
from pilotfish.config.hf_options import (
    CHECKPOINT,
    real_number,
    text_config,
    want_value,
    want_values,
    whole_number,
)
from pilotfish.errors import ConfigError

_ABSENT = object()
_positive = number("a number > 0", lambda value: value > 0)
_FIXED = {
    "pos_emb_type": ("divided_fixed",),
    "merge_type": ("sd2_tpool",),
    "mm_projector_type": ("patchmerger",),
    "video_attn_type": ("spatial_temporal",),
    "projector_hidden_act": ("gelu",),
    "hidden_act": ("gelu_pytorch_tanh",),
}
"""Options that choose among kinds, and the kinds that are built."""
_UNREAD = {
    **dict.fromkeys(("num_channels", "in_channels"), (None, 3)),
    **dict.fromkeys(("qkv_bias", "attention_bias", "mlp_bias", "use_bias"), (None, True)),
    **dict.fromkeys(("layer_norm_eps", "norm_eps"), (None, 1e-5)),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "use_cls_token", "gated_mlp"), (None, False)),
    **dict.fromkeys(("window_size", "fullatt_block_indexes", "num_register_tokens"), (None,)),
    **dict.fromkeys(("num_key_value_heads", "head_dim", "partial_rotary_factor"), (None,)),
    **dict.fromkeys(("rope_theta", "quantization_config"), (None,)),
}
"""Options that would change the maths and are not read: values that change nothing."""


@attrs.frozen(kw_only=True)
class VisionConfig:
    """The tower's geometry.

    hidden_size: D. patch_size: pixels of a patch's side. position_rows, position_columns: of the
    learned table. merge_rows, merge_columns: patches that become one token. rope_theta: of the 2-D
    rotary embedding. projector_eps: of the projector's norm. text_hidden_size: width of a token.
    image_token_id, video_token_id: placeholders; the second may be None.
    """

    hidden_size: int = attrs.field(validator=int_at_least(4))
    num_heads: int = attrs.field(validator=int_at_least(1))
    num_layers: int = attrs.field(validator=int_at_least(0))
    intermediate_size: int = attrs.field(validator=int_at_least(1))
    patch_size: int = attrs.field(default=14, validator=int_at_least(1))
    position_rows: int = attrs.field(default=64, validator=int_at_least(1))
    position_columns: int = attrs.field(default=64, validator=int_at_least(1))
    merge_rows: int = attrs.field(default=2, validator=int_at_least(1))
    merge_columns: int = attrs.field(default=2, validator=int_at_least(1))
    rope_theta: float = attrs.field(default=10000.0, validator=_positive)
    norm_eps: float = attrs.field(default=1e-5, validator=norm_epsilon())
    projector_eps: float = attrs.field(default=1e-5, validator=norm_epsilon())
    text_hidden_size: int = attrs.field(validator=int_at_least(1))
    image_token_id: int = attrs.field(validator=int_at_least(0))
    video_token_id: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision hidden_size is {self.hidden_size} for {self.num_heads} heads; wanted a "
                "head width that is a multiple of 4, for rows and columns of rotary pairs"
            )

    @classmethod
    def from_hf(cls, hf: Any) -> Self | None:
        """Reads the whole Hugging Face config; None where it has no vision_config.

        Raises ConfigError naming an option that changes the maths and is not understood.
        """
        vision = getattr(hf, "vision_config", None)
        if vision is None:
            return None
        for name, known in _FIXED.items():
            value = _first(vision, name, default=known[0])
            if value not in known:
                raise ConfigError(
                    f"vision_config has {name} = {value!r}; wanted {' or '.join(map(repr, known))}"
                )
        want_values(vision, _UNREAD, "vision_config")
        for name in ("projection_hidden_act", "projector_hidden_act"):
            want_value(name, getattr(hf, name, None), (None, "gelu"))
        _count(vision, "init_pos_emb_time", "pos_emb_time", default=4)  # of video, not read
        rows, columns = _pair(_first(vision, "merge_kernel_size", default=(2, 2)))
        width = _count(vision, "vt_hidden_size", "hidden_size", least=4)
        given = _first(vision, "mm_hidden_size", default=None)
        if given is None and _first(vision, "vt_hidden_size", default=None) is None:
            given = getattr(hf, "projection_hidden_size", None)
        if given not in (None, width):
            raise ConfigError(
                f"the projector's norm is for rows of {given} and the tower gives {width}; wanted "
                "projection_hidden_size (or mm_hidden_size) equal to the tower's hidden_size"
            )
        return cls(
            hidden_size=width,
            num_heads=_count(vision, "vt_num_attention_heads", "num_attention_heads"),
            num_layers=_count(vision, "vt_num_hidden_layers", "num_hidden_layers", least=0),
            intermediate_size=_count(vision, "vt_intermediate_size", "intermediate_size"),
            patch_size=_count(vision, "patch_size", default=14),
            position_rows=_count(vision, "init_pos_emb_height", "pos_emb_height", default=64),
            position_columns=_count(vision, "init_pos_emb_width", "pos_emb_width", default=64),
            merge_rows=rows,
            merge_columns=columns,
            rope_theta=_rope_theta(vision),
            projector_eps=_projector_eps(hf, vision),
            text_hidden_size=text_config(hf).hidden_size,
            image_token_id=_count(
                hf, "media_placeholder_token_id", "image_token_id", least=0, whose=CHECKPOINT
            ),
            video_token_id=_first(hf, "video_token_id", default=None),
        )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_numbers(self) -> int:
        """Numbers of one patch: three colors."""
        return 3 * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of the patches that become one token, side by side."""
        return self.hidden_size * self.merge_rows * self.merge_columns

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Tokens of an image of a grid."""
        _, rows, columns = grid_thw
        return (rows // self.merge_rows) * (columns // self.merge_columns)

    def pass_bytes(self, num_patches: int, itemsize: int) -> int:
        """Bytes of a pass over so many patches at its fullest.

        Pixels and angles, the stream and three copies of it, and the larger of two: q, k and v with
        q and k in float32 three times while they are turned; or the inner rows of the MLP before
        and after their GELU, which is computed in float32. Measured: 0.52 GB for 8192 patches of
        the published widths in bfloat16, 0.54 GB by this sum.
        """
        pixels = self.patch_numbers * (4 + 2 * itemsize) + 8 * self.head_dim
        attention = self.hidden_size * (3 * itemsize + 3 * 2 * 4)
        inner = self.intermediate_size * (2 * itemsize + 2 * 4)
        return num_patches * (pixels + 4 * self.hidden_size * itemsize + max(attention, inner))


def _first(section: Any, *names: str, default: Any = _ABSENT) -> Any:
    """The value of the first name that is there; None counts as absent."""
    for name in names:
        value = getattr(section, name, None)
        if value is not None:
            return value
    if default is _ABSENT:
        raise ConfigError(
            f"the checkpoint's config has no {names[0]}; wanted one of {', '.join(names)}"
        )
    return default


def _count(
    section: Any,
    *names: str,
    default: Any = _ABSENT,
    least: int = 1,
    whose: str = "vision_config",
) -> int:
    """As `_first`, a whole number, under the name that the checkpoint has for it."""
    value = _first(section, *names, default=default)
    there = [name for name in names if getattr(section, name, None) is not None]
    return whole_number((there or names)[0], value, least=least, whose=whose)


def _pair(value: Any) -> tuple[int, int]:
    rows, columns = value if isinstance(value, list | tuple) and len(value) == 2 else (value,) * 2
    if is_int(rows) and is_int(columns) and min(rows, columns) >= 1:
        return rows, columns
    raise ConfigError(
        f"vision_config has merge_kernel_size = {value!r}; wanted two whole numbers >= 1"
    )


def _rope_theta(vision: Any) -> float:
    rope = _first(vision, "rope_parameters", default={})
    want_value("rope_scaling", getattr(vision, "rope_scaling", None), (None, rope), "vision_config")
    kind = rope.get("rope_type", "axial")
    if kind != "axial":
        raise ConfigError(f"vision_config has rope_type {kind!r}; wanted 'axial'")
    unknown = sorted(set(rope) - {"rope_type", "rope_theta"})
    if unknown:
        raise ConfigError(f"vision_config has rope options {unknown}; wanted rope_theta only")
    theta = rope.get("rope_theta")
    return real_number(
        "rope_theta", 10000.0 if theta is None else theta, above=0, whose="vision_config"
    )


def _projector_eps(hf: Any, vision: Any) -> float:
    """The published name is beside the tower's options, transformers' at the top."""
    eps = _first(vision, "projector_ln_eps", default=None)
    if eps is not None:
        return real_number("projector_ln_eps", eps, above=0, most=1, whose="vision_config")
    name = "projection_layer_norm_eps"
    return real_number(name, _first(hf, name, default=1e-5), above=0, most=1)
