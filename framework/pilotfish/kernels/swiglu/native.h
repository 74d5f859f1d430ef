// SwiGLU: silu(gate) rounded to the dtype, times up, rounded again. An element is one lane's.
#pragma once
#include "pilotfish/functions.h"
#include "pilotfish/rows.h"

extern "C" {
// gate_up: [rows, 2 width] of `dtype`, gate first, rows row_stride elements apart. out: [rows, width] contiguous.
typedef struct pf_swiglu {
  const void* gate_up;
  void* out;
  int64_t rows, width, row_stride;
  int64_t dtype;
} pf_swiglu;
}

namespace pilotfish {
namespace PF_ISA {

constexpr int64_t SWIGLU_PIECE = 512;  // elements that one thread takes at a time

template <int DTYPE>
static void swiglu_of(const pf_swiglu* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const int64_t pieces = (a->width + SWIGLU_PIECE - 1) / SWIGLU_PIECE;
  const Share mine = share(a->rows * pieces, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / pieces, first = i % pieces * SWIGLU_PIECE;
    const int64_t left = a->width - first, count = left < SWIGLU_PIECE ? left : SWIGLU_PIECE;
    const Type* gate = (const Type*)a->gate_up + row * a->row_stride + first;
    const Type* up = gate + a->width;
    Type* out = (Type*)a->out + row * a->width + first;
    for (int64_t k = 0; k < count; k += LANES) {
      const Floats open = rounded<DTYPE>(silu(read_some<DTYPE>(gate + k, count - k)));
      write_some<DTYPE>(out + k, open * read_some<DTYPE>(up + k, count - k), count - k);
    }
  }
}

static void swiglu(const void* args, pf_team* team) {
  const pf_swiglu* a = (const pf_swiglu*)args;
  with_dtype(a->dtype, [&](auto dtype) { swiglu_of<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
