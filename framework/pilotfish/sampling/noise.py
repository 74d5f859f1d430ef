"""Gumbel noise as a pure function of (request seed, absolute position, token id).

Knows: how three integers become one number of noise. Does not know: logits, requests or batches.
Axis letters: R rows of logits, V vocabulary, C candidate tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from pilotfish.kernels.sampling import native

_INT63 = (1 << 63) - 1
_BLOCK_ON_CPU = (
    1 << 15
)  # elements: stays in the cache, and below the size where torch forks threads
_BLOCK_ON_GPU = 1 << 24  # elements: bounds the scratch memory


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as the int64 that torch takes."""
    return value - (1 << 64) if value >> 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MUL_A = _signed(0xBF58476D1CE4E5B9)
_MUL_B = _signed(0x94D049BB133111EB)


def gumbel(
    seeds: Tensor, positions: Tensor, vocab_size: int, device: torch.device | str | None = None
) -> Tensor:
    """Gumbel noise of every token at one position of each row's request.

    seeds: [R] int64, the request's seed. positions: [R] int64, the absolute position of the token
    to be sampled (its index in prompt and answer together). device: of the result; None means that
    of `seeds`. Returns [R, V] float32, always finite, in [-2.82, 44.4].

    An element depends on its (seed, position, id) alone: not on the row it lies in, on the other
    rows, or on V. The argmax of `logits + noise` is a sample from softmax(logits).

    The hash is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", 2014), chosen because it is counter-based, passes BigCrush when its counter is a
    plain 0, 1, 2, ..., and is exact in wrapping int64, so that CPU and GPU agree on every bit of
    it: key = mix(mix(seed) + position), bits = mix(key + id), each counter times an odd constant.
    The logarithms after it round alike in every native library, and as they like in torch.
    """
    target = seeds.device if device is None else torch.device(device)
    if native.serves(target):
        return native.gumbel(seeds.to(target), positions.to(target), vocab_size)
    keys = _row_keys(seeds, positions)
    out = torch.empty(keys.numel(), vocab_size, dtype=torch.float32, device=target)
    if target.type != "cpu":
        _fill_whole(out, keys.to(target))
        return out
    key_list = keys.tolist()
    for low, high in _blocks(vocab_size, _BLOCK_ON_CPU):
        counters = torch.arange(low + 1, high + 1).mul_(_GAMMA)
        bits, scratch = torch.empty_like(counters), torch.empty_like(counters)
        for row, key in zip(out, key_list, strict=True):
            torch.add(counters, key, out=bits)
            _gumbel_from_bits(bits, scratch, row[low:high])
    return out


def gumbel_at(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """The noise of chosen tokens, bit for bit what `gumbel` gives at those ids.

    seeds, positions: [R] int64. token_ids: [R] or [R, C] int64, ids of the target's vocabulary (a
    drafter with a smaller one maps its ids first). Returns float32 of the shape of `token_ids`.
    """
    keys = _row_keys(seeds, positions).to(token_ids.device)
    bits = _counters(token_ids)
    bits += keys.reshape(-1, *([1] * (token_ids.ndim - 1)))
    out = torch.empty(bits.shape, dtype=torch.float32, device=bits.device)
    _gumbel_from_bits(bits, torch.empty_like(bits), out)
    return out


_ACCEPT_ID = -3
"""Ids below -1 are no token's: their numbers are free for what is not the choice of a token."""
_RESIDUAL_IDS = 1 << 40
"""Added to every id: the noise of a token that replaces a rejected draft."""


def uniform_at(seeds: Tensor, positions: Tensor) -> Tensor:
    """[R] float64 in (0, 1], one number for each position, independent of its Gumbel noise.

    seeds, positions: [R] int64.
    """
    bits = _row_keys(seeds, positions)
    bits += _counters(torch.tensor(_ACCEPT_ID, device=bits.device))
    _mix_(bits)
    bits &= _INT63
    return (bits.double() + 1.0).mul_(2.0**-63).clamp_(max=1.0)


def residual_gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """[R, V] float32, noise as `gumbel`'s and independent of it."""
    ids = torch.arange(vocab_size, device=seeds.device) + _RESIDUAL_IDS
    return gumbel_at(seeds, positions, ids.expand(seeds.numel(), vocab_size))


def _fill_whole(out: Tensor, keys: Tensor) -> None:
    """out: [R, V] float32, written; keys: [R] int64. As many rows at once as scratch allows."""
    num_rows, vocab_size = out.shape
    counters = _counters(torch.arange(vocab_size, device=out.device))
    for low, high in _blocks(num_rows, max(1, _BLOCK_ON_GPU // max(1, vocab_size))):
        bits = counters + keys[low:high, None]
        _gumbel_from_bits(bits, torch.empty_like(bits), out[low:high])


def _blocks(total: int, size: int) -> Iterator[tuple[int, int]]:
    for low in range(0, total, size):
        yield low, min(low + size, total)


def _counters(numbers: Tensor) -> Tensor:
    """The steps of SplitMix64's counter; plus one, since its mix takes 0 to 0."""
    return (numbers + 1).mul_(_GAMMA)


def _row_keys(seeds: Tensor, positions: Tensor) -> Tensor:
    """[R] int64 hashes of (seed, position)."""
    keys = _mix_(_counters(seeds))
    keys += _counters(positions.to(keys.device))
    return _mix_(keys)


def _mix_(bits: Tensor) -> Tensor:
    """SplitMix64's finalizer, in place: every input bit flips each output bit half the time."""
    scratch = torch.empty_like(bits)
    _mix_high_bits_(bits, scratch)
    return _xor_shifted_(bits, scratch, 31)


def _mix_high_bits_(bits: Tensor, scratch: Tensor) -> None:
    """The finalizer without its last step, which serves the low bits only."""
    _xor_shifted_(bits, scratch, 30).mul_(_MUL_A)
    _xor_shifted_(bits, scratch, 27).mul_(_MUL_B)


def _xor_shifted_(bits: Tensor, scratch: Tensor, shift: int) -> Tensor:
    """bits ^= bits >> shift, logical: torch shifts the sign in, so its copies are masked off."""
    torch.bitwise_right_shift(bits, shift, out=scratch)
    scratch &= (1 << (64 - shift)) - 1
    bits ^= scratch
    return bits


def _gumbel_from_bits(bits: Tensor, scratch: Tensor, out: Tensor) -> None:
    """out = -log(-log1p(-v)) with v uniform from 63 hashed bits; overwrites bits and scratch.

    A small v is a large noise. Converting the integer to float32 keeps 24 significant bits however
    small it is, so the tail that decides who wins is resolved down to v = 2**-63. The clamp keeps
    v off 0 and 1, where the logarithms are infinite; it moves 2**-25 of the mass.
    """
    if native.serves(out.device):
        native.gumbel_of_counters(bits, out)
        return
    _mix_high_bits_(bits, scratch)
    bits &= _INT63
    out.copy_(bits)
    out.mul_(-(2.0**-63)).clamp_(min=-(1.0 - 2.0**-24), max=-(2.0**-64))
    out.log1p_().neg_()
    if out.device.type == "cpu":  # torch's log forks threads even for a few numbers
        np.log(out.numpy(), out=out.numpy())
    else:
        out.log_()
    out.neg_()
