// The sum of a row's slices in the order of a binary tree, in float32; an element is one lane's, rounded once.
#pragma once
#include "pilotfish/rows.h"

extern "C" {
// terms: [rows, slices * width] float32, rows row_stride apart. bias: [width] of `bias_dtype`, or null.
// out: [rows, width] of `out_dtype`, contiguous.
typedef struct pf_sum_slices {
  const float* terms;
  const void* bias;
  void* out;
  int64_t rows, width, slices, row_stride;
  int64_t out_dtype, bias_dtype;
} pf_sum_slices;
}

namespace pilotfish {
namespace PF_ISA {

constexpr int64_t SUM_PIECE = 256;  // elements that one thread takes at a time

// The tree over slices first to end: its first half, the larger one where halves are unequal, then the rest.
static Floats tree_of_slices(const float* terms, int64_t width, int64_t first, int64_t end, int64_t count) {
  if (end - first == 1) return read_some<PF_FLOAT32>(terms + first * width, count);
  const int64_t middle = first + (end - first + 1) / 2;
  const Floats left = tree_of_slices(terms, width, first, middle, count);
  return left + tree_of_slices(terms, width, middle, end, count);
}

template <int DTYPE, int BIAS>
static void sum_slices_of(const pf_sum_slices* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  using BiasType = typename Element<BIAS>::Type;
  const int64_t pieces = (a->width + SUM_PIECE - 1) / SUM_PIECE;
  const Share mine = share(a->rows * pieces, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / pieces, first = i % pieces * SUM_PIECE;
    const int64_t left = a->width - first, count = left < SUM_PIECE ? left : SUM_PIECE;
    const float* terms = a->terms + row * a->row_stride + first;
    const BiasType* bias = a->bias ? (const BiasType*)a->bias + first : nullptr;
    Type* out = (Type*)a->out + row * a->width + first;
    for (int64_t k = 0; k < count; k += LANES) {
      Floats sum = tree_of_slices(terms + k, a->width, 0, a->slices, count - k);
      if (bias) sum = sum + read_some<BIAS>(bias + k, count - k);
      write_some<DTYPE>(out + k, sum, count - k);
    }
  }
}

static void sum_slices(const void* args, pf_team* team) {
  const pf_sum_slices* a = (const pf_sum_slices*)args;
  with_dtype(a->out_dtype, [&](auto dtype) {
    with_dtype(a->bias_dtype, [&](auto bias) { sum_slices_of<dtype(), bias()>(a, team); });
  });
}

}  // namespace PF_ISA
}  // namespace pilotfish
