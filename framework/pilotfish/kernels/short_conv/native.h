// Gated short convolution of ragged rows, whose columns lie in memory by index or one after another.
//
// A thread takes some of the D columns of every row, so it reads only what it wrote itself or what earlier passes
// wrote: the rows' own columns first, then the sums. Products rounded, then added from the oldest column to the own one,
// as `reference.py` has it.
#pragma once
#include "pilotfish/rows.h"

extern "C" {
// Rows that read their columns in one memory: of each layer [M, D] of `dtype`, rows memory_stride apart.
typedef struct pf_short_conv_rows {
  void* const* memories;   // by layer
  const int64_t* columns;  // [count, W], oldest first, the own one last; null: row i reads start + i, start + i + 1, ...
  const int64_t* rows;     // [count] which rows of bcx; null: first_row + i
  int64_t count, first_row, start, memory_stride;
} pf_short_conv_rows;

// The rows of a pass, the same for every layer: `filled` of them, each in one part.
typedef struct pf_short_conv_pass {
  const pf_short_conv_rows* parts;
  int64_t num_parts, filled;
} pf_short_conv_pass;

// bcx: [num_rows, 3 D] of `dtype`, rows row_stride apart. out: [num_rows, D] contiguous; rows from the filled ones on
// are zeros. weight: [W, D] float32 contiguous. bias: [D] float32 or null. size: D, width: W.
typedef struct pf_short_conv {
  const void* bcx;
  void* out;
  const float* weight;
  const float* bias;
  const pf_short_conv_pass* pass;
  int64_t layer, num_rows, size, width, row_stride;
  int64_t dtype;
} pf_short_conv;
}

namespace pilotfish {
namespace PF_ISA {

constexpr int64_t CONV_PIECE = 64;  // of the D columns, what threads are given at least: a line of memory or two

template <int DTYPE>
static void short_conv_of(const pf_short_conv* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const int64_t size = a->size, width = a->width;
  const Share mine = share((size + CONV_PIECE - 1) / CONV_PIECE, team);
  const int64_t begin = mine.begin * CONV_PIECE, end = mine.end * CONV_PIECE < size ? mine.end * CONV_PIECE : size;
  if (begin >= end) return;
  for (int64_t number = 0; number < a->pass->num_parts; number++) {
    const pf_short_conv_rows* part = a->pass->parts + number;
    Type* memory = (Type*)part->memories[a->layer];
    for (int64_t i = 0; i < part->count; i++) {
      const int64_t row = part->rows ? part->rows[i] : part->first_row + i;
      const int64_t own = part->columns ? part->columns[i * width + width - 1] : part->start + i + width - 1;
      const Type* b = (const Type*)a->bcx + row * a->row_stride;
      Type* column = memory + own * part->memory_stride;
      for (int64_t k = begin; k < end; k += LANES) {
        const Floats u = read_some<DTYPE>(b + k, end - k) * read_some<DTYPE>(b + 2 * size + k, end - k);
        write_some<DTYPE>(column + k, u, end - k);
      }
    }
    for (int64_t i = 0; i < part->count; i++) {
      const int64_t row = part->rows ? part->rows[i] : part->first_row + i;
      const Type* c = (const Type*)a->bcx + row * a->row_stride + size;
      Type* out = (Type*)a->out + row * size;
      for (int64_t k = begin; k < end; k += LANES) {
        const int64_t n = end - k;
        Floats sum = zero();
        for (int64_t j = 0; j < width; j++) {
          const int64_t place = part->columns ? part->columns[i * width + j] : part->start + i + j;
          const Floats column = read_some<DTYPE>(memory + place * part->memory_stride + k, n);
          sum = sum + read_some<PF_FLOAT32>(a->weight + j * size + k, n) * column;
        }
        if (a->bias) sum = sum + read_some<PF_FLOAT32>(a->bias + k, n);
        write_some<DTYPE>(out + k, rounded<DTYPE>(sum) * read_some<DTYPE>(c + k, n), n);
      }
    }
  }
  for (int64_t row = a->pass->filled; row < a->num_rows; row++) {
    memset((Type*)a->out + row * size + begin, 0, sizeof(Type) * (size_t)(end - begin));
  }
}

static void short_conv(const void* args, pf_team* team) {
  const pf_short_conv* a = (const pf_short_conv*)args;
  with_dtype(a->dtype, [&](auto dtype) { short_conv_of<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
