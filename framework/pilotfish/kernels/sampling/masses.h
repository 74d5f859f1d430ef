// Softmax weights as whole numbers, whose sums no order of addition can change: see sampling/mass.py.
#pragma once
#include "pilotfish/functions.h"
#include "sampling/lanes.h"

namespace pilotfish {
namespace PF_ISA {
namespace sampling {

constexpr int MASS_BITS = 42, PART_BITS = 21;

// exp(y - largest) in units of 2 ** -42; not yet cut to a whole number.
PF_INLINE Floats mass_of(Floats y, Floats largest) { return exp(y - largest) * all(0x1p42f); }

// The sum of a row's masses. logits: [V]; each is divided by `temperature` first.
static int64_t row_mass(const float* logits, int64_t vocab, float temperature, float largest) {
  constexpr int64_t BLOCK = 512 * LANES;  // 512 parts of 21 bits fit 31
  int64_t total = 0;
  for (int64_t begin = 0; begin < vocab; begin += BLOCK) {
    const int64_t end = begin + BLOCK < vocab ? begin + BLOCK : vocab;
    Ints high = all_ints(0), low = all_ints(0);
    for (int64_t i = begin; i < end; i += LANES) {
      Floats mass = mass_of(load_logits(logits + i, end - i) / all(temperature), all(largest));
      Ints upper = cut_to_ints(mass * all(0x1p-21f));
      high = high + upper;
      low = low + cut_to_ints(fma(to_floats(upper), all(-0x1p21f), mass));
    }
    int32_t parts[2][LANES];
    store_ints(parts[0], high);
    store_ints(parts[1], low);
    for (int l = 0; l < LANES; l++) total += ((int64_t)parts[0][l] << PART_BITS) + parts[1][l];
  }
  return total;
}

// Natural logarithm of a positive normal number: 2 atanh((m - 1) / (m + 1)), every step exactly rounded, so that it is
// the same number everywhere. Within three roundings.
static double log_of_double(double x) {
  int64_t bits;
  memcpy(&bits, &x, 8);
  const int64_t n = (bits - 0x3fe6a09e667f3bcd) >> 52;
  bits -= n * (1ll << 52);
  double m;
  memcpy(&m, &bits, 8);
  const double s = (m - 1.0) / (m + 1.0), square = s * s;
  double series = 0.0;
  for (int k = 23; k >= 3; k -= 2) series = (series + 1.0 / k) * square;
  return (double)n * 0.693147180559945309 + (2.0 * s + 2.0 * s * series);
}
}  // namespace sampling
}  // namespace PF_ISA
}  // namespace pilotfish
