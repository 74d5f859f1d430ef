"""write_context_kv: as near the definition as an attention layer's own path, and no other slot."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.context_kv_write import reference, write_context_kv
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.rms_norm import rms_norm
from pilotfish.kernels.rope import apply_rope

write_context_kv = placed(write_context_kv)
write_kv = placed(write_kv)
rms_norm = placed(rms_norm)
apply_rope = placed(apply_rope)

BACKENDS = (KernelBackend("torch"), KernelBackend("triton"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
EPS = 1e-5


@attrs.frozen(kw_only=True)
class Case:
    """One call. num_padding: rows past the written ones, NaN."""

    num_rows: int
    num_padding: int
    num_layers: int
    num_heads: int
    width: int
    rotary: int
    page_size: int
    dtype: torch.dtype
    seed: int

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """kv, k_weight, cos, sin, write_slots."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = self.num_rows + self.num_padding
        shape = (rows, self.num_layers, 2, self.num_heads, self.width)
        kv = torch.randn(shape, generator=generator)
        kv[self.num_rows :] = torch.nan
        gain = 1 + 0.3 * torch.randn(self.num_layers, self.width, generator=generator)
        half = torch.rand(rows, self.rotary // 2, generator=generator) * 6
        angles = torch.cat((half, half), dim=1)
        slots = torch.randperm(self.num_slots, generator=generator)[: self.num_rows]
        return kv.to(self.dtype), gain.to(self.dtype), angles.cos(), angles.sin(), slots

    @property
    def num_slots(self) -> int:
        return self.page_size * (self.num_rows // self.page_size + 2)

    def caches(self, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
        """Nobody has written them yet."""
        shape = (self.num_slots // self.page_size, self.page_size, 2, self.num_heads, self.width)
        kind = self.dtype if dtype is None else dtype
        return [torch.full(shape, torch.nan, dtype=kind) for _ in range(self.num_layers)]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    width = draw(st.sampled_from((2, 6, 10, 16, 64, 96)))
    return Case(
        num_rows=draw(st.integers(0, 9)),
        num_padding=draw(st.integers(0, 3)),
        num_layers=draw(st.integers(1, 4)),
        num_heads=draw(st.sampled_from((1, 2, 3))),
        width=width,
        rotary=2 * draw(st.integers(1, width // 2)),
        page_size=draw(st.sampled_from((1, 3, 16))),
        dtype=draw(st.sampled_from(DTYPES)),
        seed=draw(st.integers(0, 99)),
    )


def layer_by_layer(case: Case, backend: KernelBackend) -> list[torch.Tensor]:
    """What an attention layer does with its own keys and values."""
    kv, gain, cos, sin, slots = case.tensors()
    caches = case.caches()
    for layer, cache in enumerate(caches):
        rows = kv[:, layer].contiguous()
        keys = rms_norm(rows[:, 0], None, EPS, cast="before_weight", backend=backend)
        keys.mul_(gain[layer])
        rows[:, 0] = apply_rope(keys, cos, sin, backend=backend)
        write_kv(rows, cache, slots, backend=backend)
    return caches


def exact_on(backend: KernelBackend, case: Case) -> Case:
    """The interpreter truncates to bfloat16; what it rounds properly is compared."""
    if backend.name == "triton" and case.dtype == torch.bfloat16:
        return attrs.evolve(case, dtype=torch.float16)
    return case


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@given(case=cases())
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_rows_are_those_that_an_attention_layer_writes(backend: KernelBackend, case: Case) -> None:
    """Bit for bit; a slot that is not named keeps its NaN."""
    case = exact_on(backend, case)
    kv, gain, cos, sin, slots = case.tensors()
    caches = case.caches()
    write_context_kv(kv, gain, (cos, sin), caches, slots, eps=EPS, backend=backend)
    for ours, theirs in zip(caches, layer_by_layer(case, backend), strict=True):
        assert torch.equal(bits(ours), bits(theirs))
        others = case.num_slots - case.num_rows
        assert int(ours.isnan().sum()) == others * 2 * case.num_heads * case.width


@given(case=cases())
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_no_further_from_float64_than_twice_the_reference(
    backend: KernelBackend, case: Case
) -> None:
    case = exact_on(backend, case)
    kv, gain, cos, sin, slots = case.tensors()
    exact, plain, ours = case.caches(torch.float64), case.caches(), case.caches()
    wide, values = kv.double(), kv[: case.num_rows, :, 1].clone()
    wide[:, :, 0] = exact_keys(wide[:, :, 0], gain.double(), cos.double(), sin.double())
    for layer, cache in enumerate(exact):
        cache.flatten(0, 1)[slots] = wide[: case.num_rows, layer]
    reference.write_context_kv(kv.clone(), gain, (cos, sin), plain, slots, eps=EPS)
    write_context_kv(kv, gain, (cos, sin), ours, slots, eps=EPS, backend=backend)
    for layer, (right, theirs, found) in enumerate(zip(exact, plain, ours, strict=True)):
        assert torch.equal(found.flatten(0, 1)[slots, 1], values[:, layer])
        written = right.isfinite()
        assert torch.equal(written, found.isfinite())
        assert torch.equal(written, theirs.isfinite())
        if written.any():
            error = (theirs.double() - right)[written].abs().max()
            size = right[written].abs().max()
            rounding = size * torch.finfo(case.dtype).eps
            assert (found.double() - right)[written].abs().max() <= 2 * torch.max(error, rounding)


@given(case=cases())
def test_triton_in_bfloat16_is_within_three_truncations(case: Case) -> None:
    """Norm, gain and rotation; the first two reach the third through both halves of a pair."""
    case = attrs.evolve(case, dtype=torch.bfloat16)
    kv, gain, cos, sin, slots = case.tensors()
    values = kv[: case.num_rows, :, 1].clone()
    plain, ours = case.caches(), case.caches()
    reference.write_context_kv(kv.clone(), gain, (cos, sin), plain, slots, eps=EPS)
    write_context_kv(kv, gain, (cos, sin), ours, slots, eps=EPS, backend=BACKENDS[1])
    for layer, (theirs, found) in enumerate(zip(plain, ours, strict=True)):
        assert torch.equal(found.flatten(0, 1)[slots, 1], values[:, layer])
        written = theirs.isfinite()
        assert torch.equal(written, found.isfinite())
        head = theirs.nan_to_num().float().square().sum(-1, keepdim=True).sqrt()
        room = (5 * torch.finfo(torch.bfloat16).eps * head).expand(theirs.shape)
        assert ((found.float() - theirs.float()).abs()[written] <= room[written]).all()


def exact_keys(
    keys: torch.Tensor, gain: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """keys: [T, L, K, H] float64; the definition in float64."""
    normed = keys * torch.rsqrt(keys.square().mean(-1, keepdim=True) + EPS) * gain[:, None]
    width = cos.shape[-1]
    first, second = normed[..., :width].chunk(2, -1)
    rotated = torch.cat((-second, first), -1)
    head = normed[..., :width] * cos[:, None, None] + rotated * sin[:, None, None]
    return torch.cat((head, normed[..., width:]), -1)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_a_rows_bits_are_its_own(backend: KernelBackend) -> None:
    """Alone beside padding, and among others."""
    case = Case(
        num_rows=7, num_padding=1, num_layers=3, num_heads=2, width=64, rotary=64, page_size=4,
        dtype=torch.bfloat16, seed=3,
    )  # fmt: skip
    kv, gain, cos, sin, slots = case.tensors()
    whole = case.caches()
    write_context_kv(kv.clone(), gain, (cos, sin), whole, slots, eps=EPS, backend=backend)
    for row in range(case.num_rows):
        some = [row, case.num_rows]
        alone = case.caches()
        write_context_kv(
            kv[some], gain, (cos[some], sin[some]), alone, slots[[row]], eps=EPS, backend=backend
        )
        page, offset = divmod(int(slots[row]), case.page_size)
        for a, b in zip(alone, whole, strict=True):
            assert torch.equal(bits(a[page, offset]), bits(b[page, offset]))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_addresses_past_two_billion_elements(backend: KernelBackend) -> None:
    width = 1 << 15
    num_pages = (1 << 31) // (2 * width) + 2
    # Only the pages that are touched take memory.
    cache = torch.empty(num_pages, 1, 2, 1, width, dtype=torch.float16)
    kv = torch.ones(2, 1, 2, 1, width, dtype=torch.float16)
    kv[1] *= 3
    gain = torch.full((1, width), 5, dtype=torch.float16)
    cos, sin = torch.ones(2, 2), torch.zeros(2, 2)
    slots = torch.tensor([num_pages - 1, 1])
    write_context_kv(kv, gain, (cos, sin), [cache], slots, eps=0.0, backend=backend)
    assert (cache[num_pages - 1, 0, 0] == 5).all()
    assert (cache[1, 0, 1] == 3).all()


def test_refuses_what_does_not_fit() -> None:
    case = Case(
        num_rows=3, num_padding=0, num_layers=2, num_heads=1, width=8, rotary=8, page_size=4,
        dtype=torch.float32, seed=0,
    )  # fmt: skip
    kv, gain, cos, sin, slots = case.tensors()
    caches = case.caches()

    def call(**changed: object) -> None:
        given = {"kv": kv, "k_weight": gain, "angles": (cos, sin), "caches": caches}
        given |= {"write_slots": slots, "eps": EPS, "backend": BACKENDS[0], **changed}
        write_context_kv(**given)  # type: ignore[arg-type]

    for changed, message in (
        ({"caches": caches[:1]}, "keys and values of every layer"),
        ({"kv": kv.transpose(0, 1).contiguous().transpose(0, 1)}, "keys and values of every layer"),
        ({"k_weight": gain[:1]}, "one gain a layer"),
        ({"k_weight": gain.half()}, "one gain a layer"),
        ({"angles": (cos[:2], sin)}, "R even"),
        ({"caches": [c.half() for c in caches]}, "of one dtype"),
        ({"write_slots": slots.int()}, "one slot for each row"),
        ({"write_slots": torch.arange(4)}, "one slot for each row"),
    ):
        with pytest.raises(ValueError, match=message):
            call(**changed)
