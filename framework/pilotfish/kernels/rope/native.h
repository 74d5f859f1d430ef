// Rotary position embedding: the angles of a pass's rows, and heads turned by them in place.
//
// Products, then one subtraction or addition, nothing fused: the bits are those of `eager.py` for the same angles.
#pragma once
#include "pilotfish/functions.h"
#include "pilotfish/rows.h"

extern "C" {
// x: [T, N, H] of `dtype`, H contiguous, strides in elements; its first `rotated` columns are turned in place.
// cos, sin: [T, rotated] float32 contiguous, `rotated` even; as the public function has them.
typedef struct pf_apply_rope {
  void* x;
  const float* cos;
  const float* sin;
  int64_t rows, heads, rotated, row_stride, head_stride;
  int64_t dtype;
  int64_t interleaved;
} pf_apply_rope;

// positions: [T] int64. frequencies: [pairs] float32, or [T, pairs] with a stride that is not 0.
// cos, sin: [T, 2 pairs] float32 contiguous: each pair's value at both of its places, times `scale`.
typedef struct pf_rope_angles {
  const int64_t* positions;
  const float* frequencies;
  float* cos;
  float* sin;
  int64_t rows, pairs, frequency_stride;
  int64_t interleaved;
  double scale;
} pf_rope_angles;
}

namespace pilotfish {
namespace PF_ISA {

// Lanes 2i and 2i + 1 change places.
PF_INLINE Floats swapped_neighbours(Floats x) {
#if defined(__AVX512F__)
  return {_mm512_permute_ps(x.v, 0xb1)};
#elif defined(__AVX2__)
  return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
#else
  return {{vrev64q_f32(x.q[0]), vrev64q_f32(x.q[1]), vrev64q_f32(x.q[2]), vrev64q_f32(x.q[3])}};
#endif
}

template <int DTYPE, typename Type>
PF_INLINE void turn_halves(Type* x, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; i += LANES) {
    const int64_t n = half - i;
    const Floats first = read_some<DTYPE>(x + i, n), second = read_some<DTYPE>(x + half + i, n);
    const Floats left = first * read_some<PF_FLOAT32>(cos + i, n) - second * read_some<PF_FLOAT32>(sin + half + i, n);
    const Floats right = second * read_some<PF_FLOAT32>(cos + half + i, n) + first * read_some<PF_FLOAT32>(sin + i, n);
    write_some<DTYPE>(x + i, left, n);
    write_some<DTYPE>(x + half + i, right, n);
  }
}

template <int DTYPE, typename Type>
PF_INLINE void turn_neighbours(Type* x, const float* cos, const float* sin, int64_t width) {
  // The sign bit in even lanes: there the crossed product is subtracted.
  const Ints minus = shift_left<31>((lane_numbers() & all_ints(1)) ^ all_ints(1));
  for (int64_t i = 0; i < width; i += LANES) {
    const int64_t n = width - i;
    const Floats head = read_some<DTYPE>(x + i, n);
    const Floats crossed = swapped_neighbours(head * read_some<PF_FLOAT32>(sin + i, n));
    const Floats turned = head * read_some<PF_FLOAT32>(cos + i, n) + bits_as_floats(bits_as_ints(crossed) ^ minus);
    write_some<DTYPE>(x + i, turned, n);
  }
}

template <int DTYPE>
static void apply_rope_of(const pf_apply_rope* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const Share mine = share(a->rows * a->heads, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / a->heads, head = i % a->heads;
    Type* x = (Type*)a->x + row * a->row_stride + head * a->head_stride;
    const float *cos = a->cos + row * a->rotated, *sin = a->sin + row * a->rotated;
    if (a->interleaved) turn_neighbours<DTYPE>(x, cos, sin, a->rotated);
    else turn_halves<DTYPE>(x, cos, sin, a->rotated / 2);
  }
}

static void apply_rope(const void* args, pf_team* team) {
  const pf_apply_rope* a = (const pf_apply_rope*)args;
  with_dtype(a->dtype, [&](auto dtype) { apply_rope_of<dtype()>(a, team); });
}

static void rope_angles(const void* args, pf_team* team) {
  const pf_rope_angles* a = (const pf_rope_angles*)args;
  const Share mine = share(a->rows, team);
  const float scale = (float)a->scale;
  // Where a pair's two values lie.
  const int64_t step = a->interleaved ? 2 : 1, apart = a->interleaved ? 1 : a->pairs;
  for (int64_t row = mine.begin; row < mine.end; row++) {
    const float* frequencies = a->frequencies + row * a->frequency_stride;
    float *cos = a->cos + row * 2 * a->pairs, *sin = a->sin + row * 2 * a->pairs;
    const float position = (float)a->positions[row];
    for (int64_t i = 0; i < a->pairs; i++) {
      const SineCosine at = sine_cosine(position * frequencies[i]);
      cos[i * step] = cos[i * step + apart] = at.cosine * scale;
      sin[i * step] = sin[i * step + apart] = at.sine * scale;
    }
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
