// Lanes of logits: which of them are large, and what is past a row's end. Knows no option and no row.
#pragma once
#include <math.h>

#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {
namespace sampling {

constexpr int GROUP = 8 * LANES;  // tokens that are scanned, hashed or left out together

// A bit for each lane in which it holds; lane 0 lowest.
PF_INLINE uint32_t lanes_of(Mask m) {
#if defined(__AVX512F__)
  return m.v;
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(m.a) | (uint32_t)_mm256_movemask_ps(m.b) << 8;
#else
  static const uint32_t weights[4] = {1, 2, 4, 8};
  uint32_t bits = 0;
  for (int i = 0; i < 4; i++) bits |= vaddvq_u32(vandq_u32(m.q[i], vld1q_u32(weights))) << (4 * i);
  return bits;
#endif
}
// Lanes with a >= b, where neither is NaN.
PF_INLINE uint32_t lanes_at_least(Floats a, Floats b) { return ~lanes_of(less(a, b)) & 0xffff; }

// Whole numbers, cut towards zero; x below 2 ** 31.
PF_INLINE Ints cut_to_ints(Floats x) {
#if defined(__AVX512F__)
  return {_mm512_cvttps_epi32(x.v)};
#elif defined(__AVX2__)
  return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)};
#else
  Ints r;
  for (int i = 0; i < 4; i++) r.q[i] = vcvtq_s32_f32(x.q[i]);
  return r;
#endif
}

// The first n of 16 logits; what is past the end is as if masked.
PF_INLINE Floats load_logits(const float* p, int64_t n) {
  if (n >= LANES) return load(p);
  float part[LANES];
  for (int l = 0; l < LANES; l++) part[l] = l < n ? p[l] : -INFINITY;
  return load(part);
}
}  // namespace sampling
}  // namespace PF_ISA
}  // namespace pilotfish
