"""Rotary: inverse frequencies from RopeParameters, and the angles of a pass's rows.

Knows: the maths of every type. Does not know: configs, or how a head is turned (kernels.rope).
Axis letters: T packed tokens, R rotated width. Frequencies are computed in float32, as the
checkpoints were trained.
Sources: Su et al. 2021 (RoFormer); bloc97 and emozilla 2023 (dynamic NTK); Peng et al. 2023 (YaRN);
Ding et al. 2024 (LongRoPE); Dubey et al. 2024, with its published inference code ("llama3").
"""

from __future__ import annotations

import math

import torch

from pilotfish.layers.layer import Layer
from pilotfish.layers.rope import RopeParameters

_ROWS_TIMES_WIDTH = 16384


class Rotary(Layer):
    """Angles of rows.

    parameters: which rotary positions. file_factors: the checkpoint brings a tensor of R/2 divisors
        of the frequencies (GGUF's `rope_freqs`), wanted as parameter "factors".
    interleaved: angles for pairs of neighbours instead of pairs that are half a head apart.
    """

    def __init__(
        self,
        parameters: RopeParameters,
        *,
        file_factors: bool = False,
        interleaved: bool = False,
    ) -> None:
        self.parameters = parameters
        self.interleaved = interleaved
        self.scale = attention_factor(parameters)
        self.frequencies = _both_halves(inverse_frequencies(parameters))
        self.long_frequencies: torch.Tensor | None = None
        self.bases: torch.Tensor | None = None
        if parameters.rope_type == "longrope":
            self.long_frequencies = _both_halves(inverse_frequencies(parameters, long=True))
        if parameters.rope_type == "dynamic":
            self.bases = dynamic_bases(parameters)
        if file_factors:
            self.declare("factors", (parameters.rotary_dim // 2,))

    def complete(self, tensors: dict[str, torch.Tensor], backend: object) -> None:
        """Divides the frequencies by the checkpoint's own factors."""
        del backend
        factors = _both_halves(tensors["factors"].float())
        self.frequencies = self.frequencies.to(factors.device) / factors

    def to(self, device: torch.device) -> None:
        """Moves the frequencies to the device of the rows."""
        self.frequencies = self.frequencies.to(device)
        if self.long_frequencies is not None:
            self.long_frequencies = self.long_frequencies.to(device)
        if self.bases is not None:
            self.bases = self.bases.to(device)

    def __call__(
        self, positions: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """positions: [T] int64; lengths: [T] int64, s(p) of rope.py, for types that depend on it.

        Returns (cos, sin), each [T, R] float32, attention factor included: both halves filled, or
        both neighbours.
        """
        frequencies = self._frequencies(lengths)
        if self.interleaved:
            frequencies = frequencies[..., : frequencies.shape[-1] // 2].repeat_interleave(2, -1)
        angles = positions.unsqueeze(1) * frequencies
        cos, sin = angles.cos(), angles.sin_()
        if self.scale != 1.0:
            cos.mul_(self.scale)
            sin.mul_(self.scale)
        return cos, sin

    def _frequencies(self, lengths: torch.Tensor | None) -> torch.Tensor:
        """[R], or [T, R] where rows differ."""
        if lengths is None:
            return self.frequencies
        if self.long_frequencies is not None:
            is_long = (lengths > self.parameters.original_max_positions).unsqueeze(1)
            return torch.where(is_long, self.long_frequencies, self.frequencies)
        if self.bases is not None:
            return self._dynamic(self.bases, lengths)
        return self.frequencies

    def _dynamic(self, bases: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[T, R]. A few rows at a time: torch cuts large powers up at places that depend on T."""
        exponents = _exponents(self.parameters.rotary_dim).to(bases.device)
        few = max(1, _ROWS_TIMES_WIDTH // self.parameters.rotary_dim)
        parts = [1.0 / bases[some].unsqueeze(1) ** exponents for some in torch.split(lengths, few)]
        return _both_halves(torch.cat(parts))


def inverse_frequencies(rope: RopeParameters, *, long: bool = False) -> torch.Tensor:
    """[R/2] float32, radians a token. long: longrope's factors beyond the original length."""
    plain = 1.0 / _wavelengths(rope)
    if rope.rope_type == "linear":
        return plain / _given(rope.factor)
    if rope.rope_type == "llama3":
        return _by_wavelength(rope, plain)
    if rope.rope_type == "yarn":
        return _yarn(rope)
    if rope.rope_type == "longrope":
        factors = rope.long_factor if long else rope.short_factor
        assert factors is not None
        return 1.0 / (torch.tensor(factors, dtype=torch.float32) * _wavelengths(rope))
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


def _wavelengths(rope: RopeParameters) -> torch.Tensor:
    """[R/2] float32, tokens a radian."""
    return rope.theta ** _exponents(rope.rotary_dim)


def _by_wavelength(rope: RopeParameters, plain: torch.Tensor) -> torch.Tensor:
    """Keeps short waves, divides long ones by the factor, blends between the two."""
    factor, low, high = (
        _given(rope.factor),
        _given(rope.low_freq_factor),
        _given(rope.high_freq_factor),
    )
    known = rope.original_max_positions
    wave = 2 * math.pi / plain
    blend = (known / wave - low) / (high - low)
    blended = (1 - blend) * plain / factor + blend * plain
    divided = torch.where(wave > known / low, plain / factor, blended)
    return torch.where(wave < known / high, plain, divided)


def _yarn(rope: RopeParameters) -> torch.Tensor:
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
    waves = _wavelengths(rope)
    return 1.0 / (factor * waves) * (1 - kept) + 1.0 / waves * kept


def _both_halves(half: torch.Tensor) -> torch.Tensor:
    return torch.cat((half, half), dim=-1)


def _given(value: float | None) -> float:
    assert value is not None
    return value
