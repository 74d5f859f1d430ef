// The order of a product's sums, and rows widened for it. Three ways to go through them share it: few.h, tiles.h and
// turned.h, for few, some and many rows. Knows: rows of float32. Does not know: weights.
// The order: lane l of step s holds column 16 s + l; a chain of fused multiply-adds runs over the steps of a span of
// 4096 columns; the lanes of spans are added in order; `tree_sum` joins them. It depends on nothing but the width.
// Letters: T rows, K input width, O outputs.
#pragma once
#include "pilotfish/rows.h"
#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

// Columns of one chain of sums.
constexpr int64_t SPAN = 4096;
// Outputs whose lanes are joined at once, and outputs whose results are written at once.
constexpr int64_t GROUP = 4, PANEL = 16;

// Rows widened to float32, with zeros up to a multiple of 16 columns. Their distance is odd in cache lines, so that
// several of them lie in different sets of a cache.
struct WideRows {
  const float* values;
  int64_t rows, columns;
  PF_INLINE int64_t padded(int64_t columns) { return rounded_up(columns, LANES); }
  PF_INLINE int64_t stride(int64_t columns) { return rounded_up(columns, 2 * LANES) + LANES; }
  PF_INLINE int64_t bytes(int64_t rows, int64_t columns) { return rows * stride(columns) * (int64_t)sizeof(float); }
  const float* row(int64_t t) const { return values + t * stride(columns); }
};

// Rows first to end of x, [rows, columns] of a dtype, into their places in `out`.
template <int DTYPE>
static void widen_rows(const void* x, int64_t stride, int64_t first, int64_t end, float* out, int64_t columns) {
  using Type = typename Element<DTYPE>::Type;
  for (int64_t t = first; t < end; t++) {
    const Type* from = (const Type*)x + t * stride;
    float* to = out + t * WideRows::stride(columns);
    for (int64_t k = 0; k < columns; k += LANES) store(to + k, read_some<DTYPE>(from + k, columns - k));
  }
}

// y[i] = tree_sum(x[i]) of four: the same pairs are added, four trees at a time.
PF_INLINE void four_tree_sums(const Floats* x, float* y) {
#if defined(__AVX512F__)
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(x[0].v, x[1].v, 0x44), _mm512_shuffle_f32x4(x[0].v, x[1].v, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(x[2].v, x[3].v, 0x44), _mm512_shuffle_f32x4(x[2].v, x[3].v, 0xee));
  __m512 quarter = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  __m512 two = _mm512_add_ps(quarter, _mm512_permute_ps(quarter, 0x0e));
  __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0x01));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(y, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one)));
#elif defined(__AVX2__)
  __m256 half[4];
  for (int i = 0; i < 4; i++) half[i] = _mm256_add_ps(x[i].a, x[i].b);
  __m256 quarters[2];
  for (int i = 0; i < 2; i++) {
    const __m256 a = half[2 * i], b = half[2 * i + 1];
    quarters[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  const __m256 ab = quarters[0], cd = quarters[1];
  __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a a c c, b b d d
  __m256 one = _mm256_add_ps(_mm256_permute_ps(two, 0x08), _mm256_permute_ps(two, 0x0d));        // a c, b d
  _mm_storeu_ps(y, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
#else
  for (int i = 0; i < 4; i++) y[i] = tree_sum(x[i]);
#endif
}

}  // namespace PF_ISA
}  // namespace pilotfish
