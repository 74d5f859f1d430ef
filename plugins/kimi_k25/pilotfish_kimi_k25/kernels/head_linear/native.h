// One small linear layer for every head: out[t, n] = weight[n] @ x[t, n].
//
// The order of a sum: lane l of step s holds column 16 s + l; a chain of fused multiply-adds runs over the steps of 512
// columns; `tree_sum` joins the lanes; such parts are added in order. It depends on the width alone.
// Letters: T rows, N heads, K input width, O output width.
#pragma once
#include "pilotfish/lanes.h"
#include "pilotfish/rows.h"

extern "C" {
// x: [T, N, K] of `dtype`, K contiguous, strides in elements. weight: [N, O, K] of `weight_dtype`, contiguous.
// out: [T, N, O + copied] of `dtype`, contiguous: behind its outputs a head has the `copied` columns of x that stand
// behind its K.
typedef struct pf_head_linear {
  const void* x;
  const void* weight;
  void* out;
  int64_t rows, heads, in_features, out_features;
  int64_t row_stride, head_stride;
  int64_t dtype, weight_dtype, copied;
} pf_head_linear;
}

namespace pilotfish {
namespace PF_ISA {
namespace heads {

constexpr int64_t CHUNK = 512;
constexpr int PANEL = LANES;  // outputs of a unit of work
#if defined(__AVX512F__)
constexpr int BLOCK_ROWS = 4, BLOCK_OUTPUTS = 4;
#else
constexpr int BLOCK_ROWS = 2, BLOCK_OUTPUTS = 2;
#endif

// Columns of rows that lie apart, widened, with zeros up to whole lanes; `to` has rows of `stride`.
template <int DTYPE>
static void widen(const typename Element<DTYPE>::Type* from, int64_t from_stride, int64_t rows, int64_t columns,
                  float* to, int64_t stride) {
  for (int64_t i = 0; i < rows; i++) {
    for (int64_t k = 0; k < columns; k += LANES) {
      store(to + i * stride + k, read_some<DTYPE>(from + i * from_stride + k, columns - k));
    }
  }
}

// ROWS rows times the 16 outputs of a panel, in one chunk of columns: added to y, a row's 16 outputs in a Floats.
template <int ROWS>
static void multiply(const float* x, const float* weight, int64_t stride, int64_t columns, Floats* y) {
  Floats sums[ROWS][PANEL];
  for (int first = 0; first < PANEL; first += BLOCK_OUTPUTS) {
    Floats sum[ROWS][BLOCK_OUTPUTS];
    for (int i = 0; i < ROWS; i++) for (int o = 0; o < BLOCK_OUTPUTS; o++) sum[i][o] = zero();
    for (int64_t k = 0; k < columns; k += LANES) {
      Floats row[ROWS];
      for (int i = 0; i < ROWS; i++) row[i] = load(x + i * stride + k);
      for (int o = 0; o < BLOCK_OUTPUTS; o++) {
        const Floats one = load(weight + (first + o) * stride + k);
        for (int i = 0; i < ROWS; i++) sum[i][o] = fma(one, row[i], sum[i][o]);
      }
    }
    for (int i = 0; i < ROWS; i++) for (int o = 0; o < BLOCK_OUTPUTS; o++) sums[i][first + o] = sum[i][o];
  }
  for (int i = 0; i < ROWS; i++) y[i] = y[i] + tree_sums(sums[i]);
}

// Rows from t on of one head, `ROWS` at a time and the rest one fewer: widened in x, times the panel, written.
template <int DTYPE, int ROWS>
static void multiply_rows(const pf_head_linear* a, int64_t head, int64_t first_output, const float* weight, float* x,
                          int64_t t) {
  if constexpr (ROWS > 0) {
    using Type = typename Element<DTYPE>::Type;
    const int64_t stride = (a->in_features + LANES - 1) / LANES * LANES;
    const int64_t left = a->out_features - first_output;
    for (; t + ROWS <= a->rows; t += ROWS) {
      const Type* from = (const Type*)a->x + t * a->row_stride + head * a->head_stride;
      widen<DTYPE>(from, a->row_stride, ROWS, a->in_features, x, stride);
      Floats y[ROWS];
      for (int i = 0; i < ROWS; i++) y[i] = zero();
      for (int64_t k = 0; k < stride; k += CHUNK) {
        multiply<ROWS>(x + k, weight + k, stride, stride - k < CHUNK ? stride - k : CHUNK, y);
      }
      for (int i = 0; i < ROWS; i++) {
        Type* out = (Type*)a->out + ((t + i) * a->heads + head) * (a->out_features + a->copied) + first_output;
        write_some<DTYPE>(out, y[i], left);
        if (left > PANEL || !a->copied) continue;
        memcpy(out + left, from + i * a->row_stride + a->in_features, sizeof(Type) * (size_t)a->copied);
      }
    }
    multiply_rows<DTYPE, ROWS - 1>(a, head, first_output, weight, x, t);
  }
}

template <int DTYPE, int WEIGHT_DTYPE>
static void run(const pf_head_linear* a, pf_team* team) {
  using Weight = typename Element<WEIGHT_DTYPE>::Type;
  const int64_t stride = (a->in_features + LANES - 1) / LANES * LANES;
  const int64_t panels = (a->out_features + PANEL - 1) / PANEL;
  float* panel = (float*)team->scratch(team, 0, (PANEL + BLOCK_ROWS) * stride * (int64_t)sizeof(float));
  float* x = panel + PANEL * stride;
  const Share mine = share(a->heads * panels, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t head = i / panels, first = i % panels * PANEL;
    const int64_t outputs = a->out_features - first < PANEL ? a->out_features - first : PANEL;
    const Weight* weight = (const Weight*)a->weight + (head * a->out_features + first) * a->in_features;
    widen<WEIGHT_DTYPE>(weight, a->in_features, outputs, a->in_features, panel, stride);
    memset(panel + outputs * stride, 0, sizeof(float) * (size_t)((PANEL - outputs) * stride));
    multiply_rows<DTYPE, BLOCK_ROWS>(a, head, first, panel, x, 0);
  }
}

}  // namespace heads

static void head_linear(const void* args, pf_team* team) {
  const pf_head_linear* a = (const pf_head_linear*)args;
  with_dtype(a->dtype, [&](auto dtype) {
    with_dtype(a->weight_dtype, [&](auto weight) { heads::run<dtype(), weight()>(a, team); });
  });
}

}  // namespace PF_ISA
}  // namespace pilotfish
