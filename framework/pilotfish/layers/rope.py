"""Rotary: inverse frequencies from RopeParameters, and the angles of a pass's rows.

Knows: the maths of every type. Does not know: configs, or how cos and sin are computed and a head
is turned (kernels.rope). Axis letters: T packed tokens, R rotated width.
Frequencies are float32, as the checkpoints were trained: powers by torch, whose last bit depends on
the processor; for a portable backend powers in float64, rounded to float32.
Sources: Su et al. 2021 (RoFormer); bloc97 and emozilla 2023 (dynamic NTK); Peng et al. 2023 (YaRN);
Ding et al. 2024 (LongRoPE); Dubey et al. 2024, with its published inference code ("llama3").
"""

from __future__ import annotations

import math
from functools import cached_property

import attrs
import torch

from pilotfish.config.rope import RopeParameters
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.rope import rope_angles
from pilotfish.kernels.rope.native import plan_rope_angles
from pilotfish.layers.layer import Layer

_ROWS_TIMES_WIDTH = 16384
_TORCH = KernelBackend()


@attrs.define(kw_only=True)
class Frequencies:
    """Inverse frequencies of one way to compute powers; `of` gives those of a pass's rows.

    short, long: [R/2] float32; long for rows of a request beyond the original length, or None.
    bases: [longest + 1] float32 where they depend on the length, or None.
    """

    parameters: RopeParameters
    portable: bool
    short: torch.Tensor
    long: torch.Tensor | None = None
    bases: torch.Tensor | None = None

    @classmethod
    def make(cls, parameters: RopeParameters, portable: bool) -> Frequencies:
        """On the CPU."""
        rope_type = parameters.rope_type
        long = bases = None
        if rope_type == "longrope":
            long = inverse_frequencies(parameters, long=True, portable=portable)
        if rope_type == "dynamic":
            bases = dynamic_bases(parameters)
        return cls(
            parameters=parameters,
            portable=portable,
            short=inverse_frequencies(parameters, portable=portable),
            long=long,
            bases=bases,
        )

    def to(self, device: torch.device) -> None:
        """Moves them."""
        self.short = self.short.to(device)
        self.long = None if self.long is None else self.long.to(device)
        self.bases = None if self.bases is None else self.bases.to(device)

    def of(self, lengths: torch.Tensor | None) -> torch.Tensor:
        """lengths: [T] int64 or None -> [R/2], or [T, R/2] where rows differ."""
        if lengths is None:
            return self.short
        if self.long is not None:
            is_long = (lengths > self.parameters.original_max_positions).unsqueeze(1)
            return torch.where(is_long, self.long, self.short)
        if self.bases is not None:
            return self._dynamic(self.bases, lengths)
        return self.short

    def _dynamic(self, bases: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[T, R/2]. A few rows at a time: torch cuts large powers up at places that depend on T."""
        exponents = _exponents(self.parameters.rotary_dim).to(bases.device)
        few = max(1, _ROWS_TIMES_WIDTH // self.parameters.rotary_dim)
        parts = [
            1.0 / _power(bases[some].unsqueeze(1), exponents, self.portable)
            for some in torch.split(lengths, few)
        ]
        return torch.cat(parts)


class Rotary(Layer):
    """Angles of rows.

    parameters: which rotary positions. file_factors: the checkpoint brings a tensor of R/2 divisors
        of the frequencies (GGUF's `rope_freqs`), wanted as parameter "factors".
    interleaved: angles for pairs of neighbours instead of pairs that are half a head apart.
    by_length: whether a row's angles depend on the length of its request's prompt.
    """

    def __init__(
        self,
        parameters: RopeParameters,
        *,
        file_factors: bool = False,
        interleaved: bool = False,
    ) -> None:
        self.parameters = parameters
        self.by_length = parameters.depends_on_length
        self.interleaved = interleaved
        self.scale = attention_factor(parameters)
        self.frequencies = Frequencies.make(parameters, portable=False)
        self._factors: torch.Tensor | None = None
        if file_factors:
            self.declare("factors", (parameters.rotary_dim // 2,))

    @cached_property
    def portable_frequencies(self) -> Frequencies:
        """For a portable backend, on the CPU."""
        made = Frequencies.make(self.parameters, portable=True)
        if self._factors is not None:
            made.short = made.short / self._factors
        return made

    def complete(self, tensors: dict[str, torch.Tensor], backend: object) -> None:
        """Divides the frequencies by the checkpoint's own factors."""
        del backend
        self._factors = factors = tensors["factors"].float()
        self.frequencies.short = self.frequencies.short.to(factors.device) / factors

    def to(self, device: torch.device) -> None:
        """Moves the frequencies to the device of the rows."""
        self.frequencies.to(device)

    def __call__(
        self,
        positions: torch.Tensor,
        lengths: torch.Tensor | None = None,
        backend: KernelBackend = _TORCH,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """positions: [T] int64; lengths: [T] int64, s(p) of config/rope.py, for types that have it.

        Returns (cos, sin), each [T, R] float32, attention factor included: both halves filled, or
        both neighbours.
        """
        made = self.portable_frequencies if backend.portable else self.frequencies
        return rope_angles(
            positions,
            made.of(lengths),
            scale=self.scale,
            interleaved=self.interleaved,
            backend=backend,
        )

    def plan(
        self, plan: Plan, positions: Pointer, rows: Rows, backend: KernelBackend
    ) -> tuple[Buffer, Buffer]:
        """As `__call__`, for a type that needs no lengths; positions: [rows] int64."""
        assert not self.by_length, self.parameters
        made = self.portable_frequencies if backend.portable else self.frequencies
        return plan_rope_angles(
            plan,
            positions,
            made.short,
            rows=rows,
            scale=self.scale,
            interleaved=self.interleaved,
        )


def inverse_frequencies(
    rope: RopeParameters, *, long: bool = False, portable: bool = False
) -> torch.Tensor:
    """[R/2] float32, radians a token. long: longrope's factors beyond the original length.

    portable: with powers whose bits do not depend on the processor.
    """
    waves = _wavelengths(rope, portable)
    plain = 1.0 / waves
    if rope.rope_type == "linear":
        return plain / _given(rope.factor)
    if rope.rope_type == "llama3":
        return _by_wavelength(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn(rope, waves)
    if rope.rope_type == "longrope":
        factors = rope.long_factor if long else rope.short_factor
        assert factors is not None
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * waves)
    return plain


def dynamic_bases(rope: RopeParameters) -> torch.Tensor:
    """The base at every length: [longest + 1] float32; it grows beyond the original length.

    A table, since a power's last bit depends on where in a tensor it is computed.
    """
    factor, width = _given(rope.factor), rope.rotary_dim
    lengths = torch.arange(rope.length_limit + 1).clamp(min=rope.max_positions)
    stretch = factor * lengths / rope.max_positions - (factor - 1)
    return rope.theta * stretch.double().pow(width / (width - 2)).float()


def attention_factor(rope: RopeParameters) -> float:
    """What cos and sin are multiplied with, once for q and once for k."""
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor
    factor = _stretch(rope)
    if rope.rope_type == "longrope":
        if factor <= 1.0:
            return 1.0
        return math.sqrt(1 + math.log(factor) / math.log(rope.original_max_positions))
    if rope.mscale and rope.mscale_all_dim:
        return yarn_scale(factor, rope.mscale) / yarn_scale(factor, rope.mscale_all_dim)
    return yarn_scale(factor)


def yarn_scale(factor: float, mscale: float = 1.0) -> float:
    """YaRN's attention scale, `0.1 m ln(factor) + 1` (Peng et al. 2023, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _stretch(rope: RopeParameters) -> float:
    if rope.factor is not None:
        return rope.factor
    return rope.max_positions / rope.original_max_positions


def _exponents(width: int) -> torch.Tensor:
    return torch.arange(0, width, 2, dtype=torch.float32) / width


def _wavelengths(rope: RopeParameters, portable: bool) -> torch.Tensor:
    """[R/2] float32, tokens a radian."""
    return _power(rope.theta, _exponents(rope.rotary_dim), portable)


def _power(base: float | torch.Tensor, exponents: torch.Tensor, portable: bool) -> torch.Tensor:
    """base ** exponents in float32. portable: float64's last bits differ, float32's do not."""
    if not portable:
        return base**exponents
    wide = base.double() if isinstance(base, torch.Tensor) else base
    return (wide ** exponents.double()).float()


def _by_wavelength(rope: RopeParameters, plain: torch.Tensor) -> torch.Tensor:
    """Keeps short waves, divides long ones by the factor, blends between the two."""
    low, high = _given(rope.low_freq_factor), _given(rope.high_freq_factor)
    factor, known = _given(rope.factor), rope.original_max_positions
    wave = 2 * math.pi / plain
    blend = (known / wave - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    divided = torch.where(wave > known / low, plain / factor, blended)
    return torch.where(wave < known / high, plain, divided)


def _yarn(rope: RopeParameters, waves: torch.Tensor) -> torch.Tensor:
    """A ramp over the dimensions from extrapolated to interpolated frequencies."""
    width, factor = rope.rotary_dim, _stretch(rope)

    def dimension(turns: float) -> float:
        known = rope.original_max_positions
        return width * math.log(known / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = dimension(rope.beta_fast), dimension(rope.beta_slow)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    if first == last:
        last += 0.001
    steps = torch.arange(width // 2, dtype=torch.float32)
    kept = 1 - ((steps - first) / (last - first)).clamp(0, 1)
    return 1.0 / (factor * waves) * (1 - kept) + 1.0 / waves * kept


def _given(value: float | None) -> float:
    assert value is not None
    return value
