// Gumbel noise of (seed, position, token): the integers are those of sampling/noise.py, the logarithms are our own, so
// that a token's noise has the same bits on every processor. README.md has their errors.
#pragma once
#include "pilotfish/functions.h"
#include "sampling/lanes.h"

namespace pilotfish {
namespace PF_ISA {
namespace sampling {

constexpr uint64_t GAMMA = 0x9E3779B97F4A7C15u, MULTIPLY_A = 0xBF58476D1CE4E5B9u, MULTIPLY_B = 0x94D049BB133111EBu;

// SplitMix64's finalizer without its last step, which serves the low bits only.
PF_INLINE uint64_t mix_high_bits(uint64_t z) {
  z = (z ^ (z >> 30)) * MULTIPLY_A;
  return (z ^ (z >> 27)) * MULTIPLY_B;
}
PF_INLINE uint64_t mix(uint64_t z) {
  z = mix_high_bits(z);
  return z ^ (z >> 31);
}
PF_INLINE uint64_t row_key(uint64_t seed, uint64_t position) {
  return mix(mix((seed + 1) * GAMMA) + (position + 1) * GAMMA);
}
// 63 bits as the nearest float32. A plain cast rounds once on every processor; as a loop it uses vectors.
PF_INLINE float uniform_bits(uint64_t counter) { return (float)(int64_t)(mix_high_bits(counter) & INT64_MAX); }

// v: [GROUP], of the tokens from `first` on.
static inline void hash_group(uint64_t key, uint64_t first, float* v) {
  for (uint64_t i = 0; i < GROUP; i++) v[i] = uniform_bits(key + (first + i + 1) * GAMMA);
}
// v: [LANES], of chosen tokens.
PF_INLINE void hash_tokens(uint64_t key, const uint32_t* ids, float* v) {
  for (int l = 0; l < LANES; l++) v[l] = uniform_bits(key + ((uint64_t)ids[l] + 1) * GAMMA);
}
// From hashed bits to v; kept off 0 and 1, where the logarithms are infinite.
PF_INLINE Floats uniform(const float* bits) {
  return smaller(larger(load(bits) * all(0x1p-63f), all(0x1p-64f)), all(1.0f - 0x1p-24f));
}

// -log(1 - v), as exact for small v as for large: the mantissa is taken from v itself, without rounding.
PF_INLINE Floats exponential(Floats v) {
  Ints n = nearest_exponent(all(1.0f) - v);
  Floats scale = bits_as_floats(shift_left<23>(all_ints(127) - n));  // 2 ** -n, 1 to 2 ** 24
  Floats m = fma(negative(scale), v, scale - all(1.0f));            // scale * (1 - v) - 1
  return negative(log_of_parts(to_floats(n), m));
}
PF_INLINE Floats gumbel(Floats v) {
  Floats e = exponential(v);
  Ints n = nearest_exponent(e);
  Floats m = bits_as_floats(bits_as_ints(e) - shift_left<23>(n)) - all(1.0f);
  return negative(log_of_parts(to_floats(n), m));
}
// No less than gumbel(v), for far less work: -log(-log(1 - v)) <= -log(v), and log2(1 + m) >= m.
PF_INLINE Floats gumbel_at_most(Floats v) {
  return fma(to_floats(bits_as_ints(v)), all(-8.2629582e-8f), all(88.0296919f + 0.01f));
}
}  // namespace sampling
}  // namespace PF_ISA
}  // namespace pilotfish
