// The weighted sum of several rows for each row of a pass. A product is rounded, then added, terms in order: as
// `reference.py` has it. An element is one lane's.
#pragma once
#include "pilotfish/rows.h"

extern "C" {
// x: [R, width] of `dtype`, rows row_stride apart. places: [filled, terms] int64. weights: [filled, terms] float32.
// last: [rows, width] of `dtype`, rows last_stride apart, or null. out: [rows, width] contiguous; rows from `filled` on
// are sums of `last` alone.
typedef struct pf_combine_rows {
  const void* x;
  const int64_t* places;
  const float* weights;
  const void* last;
  void* out;
  int64_t rows, filled, terms, width, row_stride, last_stride;
  int64_t dtype;
} pf_combine_rows;
}

namespace pilotfish {
namespace PF_ISA {

constexpr int64_t COMBINE_PIECE = 512;  // elements that one thread takes at a time

template <int DTYPE>
static void combine_rows_of(const pf_combine_rows* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const int64_t pieces = (a->width + COMBINE_PIECE - 1) / COMBINE_PIECE;
  const Share mine = share(a->rows * pieces, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / pieces, first = i % pieces * COMBINE_PIECE;
    const int64_t left = a->width - first, count = left < COMBINE_PIECE ? left : COMBINE_PIECE;
    const int64_t terms = row < a->filled ? a->terms : 0;
    float sums[COMBINE_PIECE + LANES] = {};
    for (int64_t term = 0; term < terms; term++) {
      const int64_t at = row * a->terms + term;
      const Floats weight = all(a->weights[at]);
      const Type* x = (const Type*)a->x + a->places[at] * a->row_stride + first;
      for (int64_t k = 0; k < count; k += LANES) {
        store(sums + k, load(sums + k) + weight * read_some<DTYPE>(x + k, count - k));
      }
    }
    const Type* last = a->last ? (const Type*)a->last + row * a->last_stride + first : nullptr;
    Type* out = (Type*)a->out + row * a->width + first;
    for (int64_t k = 0; k < count; k += LANES) {
      Floats sum = load(sums + k);
      if (last) sum = sum + read_some<DTYPE>(last + k, count - k);
      write_some<DTYPE>(out + k, sum, count - k);
    }
  }
}

static void combine_rows(const void* args, pf_team* team) {
  const pf_combine_rows* a = (const pf_combine_rows*)args;
  with_dtype(a->dtype, [&](auto dtype) { combine_rows_of<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
