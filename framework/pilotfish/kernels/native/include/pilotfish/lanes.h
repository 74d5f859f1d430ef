// Work across the lanes of Floats: many sums at once, the largest lane, rows turned into columns.
//
// The tree is that of `tree_sum`: lane l meets lane l + 8, then + 4, + 2, + 1; one sum and sixteen give the same bits.
#pragma once
#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

// clang-format off
#if defined(__AVX512F__)

// Lane i of the result is tree_sum(x[i]).
PF_INLINE Floats tree_sums(const Floats x[LANES]) {
  __m512 quarters[4];  // of x[i], x[i + 4], x[i + 8], x[i + 12]
  for (int i = 0; i < 4; i++) {
    __m512 a = x[i].v, b = x[i + 4].v, c = x[i + 8].v, d = x[i + 12].v;
    __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  }
  __m512 pairs[2];
  for (int i = 0; i < 2; i++) {
    __m512d a = _mm512_castps_pd(quarters[2 * i]), b = _mm512_castps_pd(quarters[2 * i + 1]);
    pairs[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return {_mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd))};
}

PF_INLINE float tree_larger(Floats x) {
  __m256 half = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Lane i of x[j] and lane j of x[i] change places.
PF_INLINE void transpose(Floats x[LANES]) {
  __m512 a[LANES], b[LANES];
  for (int i = 0; i < LANES; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < LANES; i += 4) {  // b[i + c]: columns c, c + 4, c + 8, c + 12 of rows i to i + 3
    for (int half = 0; half < 2; half++) {
      __m512d low = _mm512_castps_pd(a[i + half]), high = _mm512_castps_pd(a[i + 2 + half]);
      b[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      b[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
  for (int c = 0; c < 4; c++) {
    __m512 low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44), high = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
    __m512 next_low = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
    __m512 next_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
    x[c].v = _mm512_shuffle_f32x4(low, next_low, 0x88);
    x[4 + c].v = _mm512_shuffle_f32x4(low, next_low, 0xdd);
    x[8 + c].v = _mm512_shuffle_f32x4(high, next_high, 0x88);
    x[12 + c].v = _mm512_shuffle_f32x4(high, next_high, 0xdd);
  }
}

#elif defined(__AVX2__)

PF_INLINE Floats tree_sums(const Floats x[LANES]) {
  __m256 result[2];
  for (int half = 0; half < 2; half++) {
    __m256 quarters[4];  // of x[i] and x[i + 4]
    for (int i = 0; i < 4; i++) {
      Floats one = x[8 * half + i], other = x[8 * half + i + 4];
      __m256 a = _mm256_add_ps(one.a, one.b), b = _mm256_add_ps(other.a, other.b);
      quarters[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
    }
    __m256 pairs[2];
    for (int i = 0; i < 2; i++) {
      __m256d a = _mm256_castps_pd(quarters[2 * i]), b = _mm256_castps_pd(quarters[2 * i + 1]);
      pairs[i] = _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)));
    }
    __m256 even = _mm256_shuffle_ps(pairs[0], pairs[1], 0x88), odd = _mm256_shuffle_ps(pairs[0], pairs[1], 0xdd);
    result[half] = _mm256_add_ps(even, odd);
  }
  return {result[0], result[1]};
}

PF_INLINE float tree_larger(Floats x) {
  __m256 half = _mm256_max_ps(x.a, x.b);
  __m128 quarter = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_max_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

// Eight rows of eight lanes.
PF_INLINE void transpose_eight(__m256 x[8]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
    a[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; half++) {
      __m256d low = _mm256_castps_pd(a[i + half]), high = _mm256_castps_pd(a[i + 2 + half]);
      b[i + 2 * half] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, high));
      b[i + 2 * half + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, high));
    }
  }
  for (int c = 0; c < 4; c++) {
    x[c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x20);
    x[4 + c] = _mm256_permute2f128_ps(b[c], b[4 + c], 0x31);
  }
}
PF_INLINE void transpose(Floats x[LANES]) {
  __m256 part[4][8];  // rows 0 to 7, lanes 0 to 7; their lanes 8 to 15; rows 8 to 15 likewise
  for (int i = 0; i < 8; i++) {
    part[0][i] = x[i].a, part[1][i] = x[i].b;
    part[2][i] = x[8 + i].a, part[3][i] = x[8 + i].b;
  }
  for (int i = 0; i < 4; i++) transpose_eight(part[i]);
  for (int i = 0; i < 8; i++) {
    x[i] = {part[0][i], part[2][i]};
    x[8 + i] = {part[1][i], part[3][i]};
  }
}

#else  // NEON

PF_INLINE Floats tree_sums(const Floats x[LANES]) {
  Floats result;
  for (int block = 0; block < 4; block++) {
    float32x4_t quarters[4];
    for (int i = 0; i < 4; i++) {
      Floats one = x[4 * block + i];
      quarters[i] = vaddq_f32(vaddq_f32(one.q[0], one.q[2]), vaddq_f32(one.q[1], one.q[3]));
    }
    float32x4_t pairs[2];
    for (int i = 0; i < 2; i++) {
      float32x4_t a = quarters[2 * i], b = quarters[2 * i + 1];
      float32x4_t low = vcombine_f32(vget_low_f32(a), vget_low_f32(b));
      pairs[i] = vaddq_f32(low, vcombine_f32(vget_high_f32(a), vget_high_f32(b)));
    }
    result.q[block] = vpaddq_f32(pairs[0], pairs[1]);
  }
  return result;
}

PF_INLINE float tree_larger(Floats x) {
  float part[LANES];
  store(part, x);
  for (int step = 8; step > 0; step /= 2) {
    for (int i = 0; i < step; i++) part[i] = part[i] > part[i + step] ? part[i] : part[i + step];
  }
  return part[0];
}

PF_INLINE void transpose(Floats x[LANES]) {
  Floats y[LANES];
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 4; j++) {  // lanes 4 j to 4 j + 3 of rows 4 i to 4 i + 3
      float32x4_t a = x[4 * i].q[j], b = x[4 * i + 1].q[j], c = x[4 * i + 2].q[j], d = x[4 * i + 3].q[j];
      float64x2_t ab = vreinterpretq_f64_f32(vtrn1q_f32(a, b)), cd = vreinterpretq_f64_f32(vtrn1q_f32(c, d));
      float64x2_t ab_odd = vreinterpretq_f64_f32(vtrn2q_f32(a, b)), cd_odd = vreinterpretq_f64_f32(vtrn2q_f32(c, d));
      y[4 * j].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab, cd));
      y[4 * j + 1].q[i] = vreinterpretq_f32_f64(vtrn1q_f64(ab_odd, cd_odd));
      y[4 * j + 2].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab, cd));
      y[4 * j + 3].q[i] = vreinterpretq_f32_f64(vtrn2q_f64(ab_odd, cd_odd));
    }
  }
  for (int i = 0; i < LANES; i++) x[i] = y[i];
}

#endif
// clang-format on

}  // namespace PF_ISA
}  // namespace pilotfish
