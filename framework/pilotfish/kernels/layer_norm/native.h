// Layer norm of rows, with the residual add before it where there is one.
//
// A row is one thread's: the sum in 16 lanes (lane l: elements l, l + 16, ...), then the squares of what is left
// without the mean, likewise; each joined by `tree_sum`. Width first, so that nothing cancels.
#pragma once
#include <math.h>

#include "pilotfish/rows.h"
#include "rms_norm/native.h"

extern "C" {
// x: [rows, width] of `dtype`, out: likewise, and may be x. weight, bias: [width] float32, or null.
// residual: [rows, width] of `dtype` or null; residual += multiplier * x comes first, and its sum is normed.
typedef struct pf_layer_norm {
  const void* x;
  void* out;
  void* residual;
  const float* weight;
  const float* bias;
  int64_t rows, width, row_stride, out_stride, residual_stride;
  int64_t dtype;
  float eps, multiplier;
} pf_layer_norm;
}

namespace pilotfish {
namespace PF_ISA {

template <int DTYPE>
static void layer_norm_of(const pf_layer_norm* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const int64_t width = a->width;
  const Share mine = share(a->rows, team);
  for (int64_t row = mine.begin; row < mine.end; row++) {
    const Type* x = (const Type*)a->x + row * a->row_stride;
    Type* out = (Type*)a->out + row * a->out_stride;
    if (a->residual) {
      Type* residual = (Type*)a->residual + row * a->residual_stride;
      add_scaled_row<DTYPE>(x, residual, residual, width, all(a->multiplier));
      x = residual;
    }
    Floats sum = zero();
    for (int64_t k = 0; k < width; k += LANES) sum = sum + read_some<DTYPE>(x + k, width - k);
    const Floats mean = all(tree_sum(sum) / (float)width);
    Floats squares = zero();
    for (int64_t k = 0; k < width; k += LANES) {
      Floats left = read_some<DTYPE>(x + k, width - k) - mean;
      if (width - k < LANES) left = select(less(lane_numbers(), all_ints((int32_t)(width - k))), left, zero());
      squares = fma(left, left, squares);
    }
    const Floats scale = all(1.0f / sqrtf(tree_sum(squares) / (float)width + a->eps));
    for (int64_t k = 0; k < width; k += LANES) {
      Floats normed = (read_some<DTYPE>(x + k, width - k) - mean) * scale;
      if (a->weight) normed = normed * read_some<PF_FLOAT32>(a->weight + k, width - k);
      if (a->bias) normed = normed + read_some<PF_FLOAT32>(a->bias + k, width - k);
      write_some<DTYPE>(out + k, normed, width - k);
    }
  }
}

static void layer_norm(const void* args, pf_team* team) {
  const pf_layer_norm* a = (const pf_layer_norm*)args;
  with_dtype(a->dtype, [&](auto dtype) { layer_norm_of<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
