// Elementary functions on Floats: the same operations on every lane and every instruction set, so the same bits.
// Each is cut to a short interval and is a polynomial there (least largest error); the errors below are in units in
// the last place, against float64, and are tested. Of what is no number there comes no number.
#pragma once
#include <math.h>

#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

// 2 ** n for whole n from -126 to 127.
PF_INLINE Floats power_of_two(Ints n) { return bits_as_floats(shift_left<23>(n + all_ints(127))); }
// x with the sign of `sign`, where x is not negative.
PF_INLINE Floats with_sign(Floats x, Floats sign) {
  return bits_as_floats(bits_as_ints(x) | (bits_as_ints(sign) & all_ints(INT32_MIN)));
}

// e ** x: 1.0 units. 0 below -104, infinity above 88.8.
PF_INLINE Floats exp(Floats x) {
  x = smaller(all(89.0f), larger(all(-104.0f), x));  // in this order a NaN passes
  const Floats n = round_to_int(x * all(1.44269504088896341f));
  Floats r = fma(n, all(-0.693359375f), x);
  r = fma(n, all(2.12194440e-4f), r);
  Floats p = all(1.9918363161e-4f);
  p = fma(p, r, all(1.3946074760e-3f));
  p = fma(p, r, all(8.3332648501e-3f));
  p = fma(p, r, all(4.1666269302e-2f));
  p = fma(p, r, all(1.6666667163e-1f));
  p = fma(p, r, all(0.5f));
  p = fma(p * r, r, r) + all(1.0f);
  // In two steps: 2 ** n alone may be no normal number.
  const Ints whole = to_ints(n), half = shift_right_signed<1>(whole);
  return p * power_of_two(half) * power_of_two(whole - half);
}

// exponent * log(2) + log(1 + m), m in [sqrt(1/2) - 1, sqrt(2) - 1].
PF_INLINE Floats log_of_parts(Floats exponent, Floats m) {
  Floats p = all(6.9151252508e-2f);
  p = fma(p, m, all(-1.1789684743e-1f));
  p = fma(p, m, all(1.1873020232e-1f));
  p = fma(p, m, all(-1.2384372205e-1f));
  p = fma(p, m, all(1.4218655229e-1f));
  p = fma(p, m, all(-1.6669249535e-1f));
  p = fma(p, m, all(2.0002226532e-1f));
  p = fma(p, m, all(-2.4999986589e-1f));
  p = fma(p, m, all(3.3333310485e-1f));
  const Floats square = m * m;
  Floats y = fma(exponent, all(-2.12194440e-4f), p * m * square);
  y = fma(square, all(-0.5f), y);
  return fma(exponent, all(0.693359375f), m + y);
}
// The power of two that leaves x / 2 ** n in [sqrt(1/2), sqrt(2)); x positive and normal.
PF_INLINE Ints nearest_exponent(Floats x) { return shift_right_signed<23>(bits_as_ints(x) - all_ints(0x3f3504f3)); }

// Natural logarithm: 0.8 units. -infinity of 0, NaN of negative numbers.
PF_INLINE Floats log(Floats x) {
  const Floats infinity = all(INFINITY);
  const Mask tiny = less(x, all(1.17549435e-38f));  // no normal number
  const Floats normal = select(tiny, x * all(8388608.0f), x);
  const Ints n = nearest_exponent(normal);
  const Floats m = bits_as_floats(bits_as_ints(normal) - shift_left<23>(n)) - all(1.0f);
  Floats y = log_of_parts(to_floats(n) - select(tiny, all(23.0f), zero()), m);
  y = select(less(x, infinity), y, x);
  return select(less(zero(), x), y, select(less(x, zero()), all(NAN), select(is_nan(x), x, negative(infinity))));
}

// log(1 + x) for x from 0 to infinity: 1.9 units.
PF_INLINE Floats log_of_one_plus(Floats x) {
  const Floats sum = all(1.0f) + x;
  // What the sum's rounding lost, as the logarithm's slope there carries it.
  const Floats lost = select(less(x, all(1.0f)), x - (sum - all(1.0f)), all(1.0f) - (sum - x));
  const Floats y = log(sum) + lost / sum;
  return select(less(sum, all(INFINITY)), y, sum);
}

// 1.0 units.
PF_INLINE Floats tanh(Floats x) {
  const Floats size = magnitude(x), square = x * x;
  Floats p = all(-4.5907811727e-4f);
  p = fma(p, square, all(2.5928157847e-3f));
  p = fma(p, square, all(-8.2756774500e-3f));
  p = fma(p, square, all(2.1669553593e-2f));
  p = fma(p, square, all(-5.3930945694e-2f));
  p = fma(p, square, all(1.3332998753e-1f));
  p = fma(p, square, all(-3.3333322406e-1f));
  const Floats near = fma(p * square, size, size);
  const Floats far = all(1.0f) - all(2.0f) / (exp(size + size) + all(1.0f));
  return with_sign(select(less(size, all(0.9f)), near, far), x);
}

// The error function: 1.1 units.
PF_INLINE Floats erf(Floats x) {
  const Floats square = x * x;
  Floats p = all(8.3452257968e-5f);
  p = fma(p, square, all(-8.1374379806e-4f));
  p = fma(p, square, all(5.2006342448e-3f));
  p = fma(p, square, all(-2.6859270409e-2f));
  p = fma(p, square, all(1.1283694208e-1f));
  p = fma(p, square, all(-3.7612634897e-1f));
  p = fma(p, square, all(1.2837916613e-1f));
  const Floats near = fma(p, x, x);
  const Floats size = smaller(all(4.0f), magnitude(x));  // 1 from there on
  Floats q = all(-1.1522305613e-5f);  // log(1 - erf(t)) = -t + t q(t)
  q = fma(q, size, all(3.2565285801e-4f));
  q = fma(q, size, all(-3.6537647247e-3f));
  q = fma(q, size, all(2.3785348982e-2f));
  q = fma(q, size, all(-1.0626314580e-1f));
  q = fma(q, size, all(-6.3513588905e-1f));
  q = fma(q, size, all(-1.2865215540e-1f));
  const Floats far = all(1.0f) - exp(fma(q, size, negative(size)));
  return select(less(magnitude(x), all(0.921875f)), near, with_sign(far, x));
}

// 1 / (1 + exp(-x)).
PF_INLINE Floats sigmoid(Floats x) { return all(1.0f) / (all(1.0f) + exp(negative(x))); }
// x / (1 + exp(-x)).
PF_INLINE Floats silu(Floats x) { return x / (all(1.0f) + exp(negative(x))); }
// x times the normal distribution's share below x.
PF_INLINE Floats gelu(Floats x) { return all(0.5f) * x * (all(1.0f) + erf(x * all(0.70710678118654752f))); }
PF_INLINE Floats gelu_tanh(Floats x) {
  const Floats cube = x * x * x;
  const Floats inner = all(0.79788456080286536f) * (x + all(0.044715f) * cube);
  return all(0.5f) * x * (all(1.0f) + tanh(inner));
}
// log(1 + exp(x)).
PF_INLINE Floats softplus(Floats x) {
  return larger(zero(), x) + log_of_one_plus(exp(negative(magnitude(x))));
}
// The square of what is positive.
PF_INLINE Floats relu_squared(Floats x) {
  const Floats positive = larger(zero(), x);  // in this order a NaN passes
  return positive * positive;
}

// Sine and cosine of one angle in radians, to within a rounding of float32 for |x| up to 1e9; NaN of what is no angle.
// In float64, since an angle of a far position has most of its digits before the point.
struct SineCosine {
  float sine, cosine;
};
PF_INLINE SineCosine sine_cosine(float angle) {
  const double x = angle;
  const double turns = rint(x * 0.63661977236758134);  // quarter turns
  // pi / 2 in two parts; the first product is exact inside of the fused operation.
  double r = __builtin_fma(-turns, 1.5707963267948966, x);
  r = __builtin_fma(-turns, 6.123233995736766e-17, r);
  const double s = r * r;
  double p = -2.4761631109284328e-08;
  p = __builtin_fma(p, s, 2.755535748586792e-06);
  p = __builtin_fma(p, s, -0.00019841263821927696);
  p = __builtin_fma(p, s, 0.008333333325270597);
  p = __builtin_fma(p, s, -0.16666666666631594);
  const double sine = __builtin_fma(p * s, r, r);
  double q = -2.7210210628901836e-07;
  q = __builtin_fma(q, s, 2.479951968412103e-05);
  q = __builtin_fma(q, s, -0.001388888375219431);
  q = __builtin_fma(q, s, 0.04166666662281408);
  const double cosine = __builtin_fma(q * s, s, __builtin_fma(s, -0.5, 1.0));
  if (!(fabs(x) < 1e15)) return {NAN, NAN};
  const int64_t quarter = (int64_t)turns & 3;
  const double first = quarter & 1 ? cosine : sine, second = quarter & 1 ? sine : cosine;
  return {(float)(quarter & 2 ? -first : first), (float)((quarter + 1) & 2 ? -second : second)};
}

}  // namespace PF_ISA
}  // namespace pilotfish
