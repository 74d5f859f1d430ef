// RMS norm of rows, with the residual add before it where there is one.
//
// A row is one thread's. Its squares run in four times 16 lanes (lane l of chain c: elements l, l + 16, ... of every
// fourth step from c on), each a chain of fused multiply-adds; (0 + 1) + (2 + 3) and the tree of `tree_sum` join them;
// then eps, one square root, one division, as `reference.py` has it.
#pragma once
#include <math.h>

#include "pilotfish/rows.h"

extern "C" {
// x: [T, N, D] of `dtype`, D contiguous, strides in elements; out: likewise, and may be x itself.
// weight: null, or [D] of `weight_dtype` (`dtype` or float32), or one such row for each head, weight_stride apart.
// residual: [T, D] of `dtype` or null; then N is 1, and residual += multiplier * x comes first.
typedef struct pf_rms_norm {
  const void* x;
  void* out;
  void* residual;
  const void* weight;
  int64_t rows, heads, width;
  int64_t row_stride, head_stride, out_row_stride, out_head_stride, residual_stride, weight_stride;
  int64_t dtype, weight_dtype;
  int64_t cast_before_weight;
  float eps, multiplier;
} pf_rms_norm;

// residual: [rows, width], x: likewise; out = residual + multiplier * x, which may be either of them.
typedef struct pf_add_scaled {
  const void* x;
  const void* residual;
  void* out;
  int64_t rows, width, row_stride, residual_stride, out_stride;
  int64_t dtype;
  double multiplier;
} pf_add_scaled;
}

namespace pilotfish {
namespace PF_ISA {

template <int DTYPE, typename Type>
PF_INLINE void add_scaled_row(const Type* x, const Type* residual, Type* out, int64_t width, Floats multiplier) {
  for (int64_t k = 0; k < width; k += LANES) {
    const Floats added = read_some<DTYPE>(x + k, width - k), before = read_some<DTYPE>(residual + k, width - k);
    write_some<DTYPE>(out + k, fma(multiplier, added, before), width - k);
  }
}

// The sum of a row's squares.
template <int DTYPE, typename Type>
PF_INLINE float sum_of_squares(const Type* x, int64_t width) {
  Floats chain[4] = {zero(), zero(), zero(), zero()};
  int64_t k = 0;
  for (; k + 4 * LANES <= width; k += 4 * LANES) {
    for (int c = 0; c < 4; c++) {
      const Floats part = read<DTYPE>(x + k + c * LANES);
      chain[c] = fma(part, part, chain[c]);
    }
  }
  for (int c = 0; c < 4 && k < width; c++, k += LANES) {
    const Floats part = read_some<DTYPE>(x + k, width - k);
    chain[c] = fma(part, part, chain[c]);
  }
  return tree_sum((chain[0] + chain[1]) + (chain[2] + chain[3]));
}

template <int DTYPE, int WEIGHT_DTYPE>
static void rms_norm_of(const pf_rms_norm* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  using Weight = typename Element<WEIGHT_DTYPE>::Type;
  const int64_t width = a->width;
  const Share mine = share(a->rows * a->heads, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / a->heads, head = i % a->heads;
    const Type* x = (const Type*)a->x + row * a->row_stride + head * a->head_stride;
    Type* out = (Type*)a->out + row * a->out_row_stride + head * a->out_head_stride;
    const Weight* weight = a->weight ? (const Weight*)a->weight + head * a->weight_stride : nullptr;
    if (a->residual) {
      Type* residual = (Type*)a->residual + row * a->residual_stride;
      add_scaled_row<DTYPE>(x, residual, residual, width, all(a->multiplier));
      x = residual;
    }
    const Floats scale = all(1.0f / sqrtf(sum_of_squares<DTYPE>(x, width) / (float)width + a->eps));
    for (int64_t k = 0; k < width; k += LANES) {
      Floats normed = read_some<DTYPE>(x + k, width - k) * scale;
      if (weight) {
        if (a->cast_before_weight) normed = rounded<DTYPE>(normed);
        normed = normed * read_some<WEIGHT_DTYPE>(weight + k, width - k);
      }
      write_some<DTYPE>(out + k, normed, width - k);
    }
  }
}

static void rms_norm(const void* args, pf_team* team) {
  const pf_rms_norm* a = (const pf_rms_norm*)args;
  with_dtype(a->dtype, [&](auto dtype) {
    if (a->weight_dtype == a->dtype) rms_norm_of<dtype(), dtype()>(a, team);
    else rms_norm_of<dtype(), PF_FLOAT32>(a, team);
  });
}

static void add_scaled(const void* args, pf_team* team) {
  const pf_add_scaled* a = (const pf_add_scaled*)args;
  with_dtype(a->dtype, [&](auto dtype) {
    using Type = typename Element<dtype()>::Type;
    const Share mine = share(a->rows, team);
    for (int64_t row = mine.begin; row < mine.end; row++) {
      const Type* residual = (const Type*)a->residual + row * a->residual_stride;
      const Type* x = (const Type*)a->x + row * a->row_stride;
      add_scaled_row<dtype()>(x, residual, (Type*)a->out + row * a->out_stride, a->width, all((float)a->multiplier));
    }
  });
}

}  // namespace PF_ISA
}  // namespace pilotfish
