// Linear layers, x @ weight.T + bias, on weights that stay as they lie in the file; and rows of such a weight alone.
//
// Knows: arguments, and how threads share outputs and rows. The sums' order stands in tiles.h, the weight's forms in
// blocks.h.
#pragma once
#include <math.h>

#include "linear/tiles.h"

extern "C" {
// x: [rows, K] of x_dtype; out: [rows, O] of out_dtype; both contiguous in columns, strides of rows in elements.
// parts: together the O outputs, in order. bias: [O] of bias_dtype, or null.
typedef struct pf_linear {
  const void* x;
  void* out;
  const pf_weight_part* parts;
  const void* bias;
  int64_t rows, in_features, num_parts;
  int64_t x_dtype, x_stride, out_dtype, out_stride, bias_dtype;
} pf_linear;

// out[t] = row tokens[t] of the weight, rounded to out_dtype; NaN where that is not from 0 to outputs - 1.
// tokens: [rows].
typedef struct pf_lookup_rows {
  const int64_t* tokens;
  void* out;
  const pf_weight_part* part;
  int64_t rows, outputs, in_features, out_dtype, out_stride;
} pf_lookup_rows;
}

namespace pilotfish {
namespace PF_ISA {

// Rows up to which each thread widens x for itself: waiting for the team would take longer.
constexpr int64_t WIDENED_ALONE = 12;
// Rows multiplied before the next panel is decoded, fewer where they are wide: they stay in the second cache.
constexpr int64_t ROWS_AT_ONCE = 192, WIDE_ROWS_AT_ONCE = 96, WIDE = 2048;

// x as float32. Few rows: this thread's own copy (or x itself); else the team's, which it waits for.
static WideRows wide_rows(const void* x, int64_t dtype, int64_t stride, int64_t rows, int64_t columns, pf_team* team) {
  if (rows == 1 && dtype == PF_FLOAT32 && columns % LANES == 0) return {(const float*)x, rows, columns};
  const int64_t bytes = WideRows::bytes(rows, columns);
  const bool is_few = rows <= WIDENED_ALONE || team->count == 1;
  float* wide = (float*)(is_few ? team->scratch(team, 0, bytes) : team->shared(team, 0, bytes));
  const Share mine = is_few ? Share{0, rows} : share(rows, team);
  with_dtype(dtype, [&](auto d) { widen_rows<d()>(x, stride, mine.begin, mine.end, wide, rows, columns); });
  if (!is_few) team->wait(team);
  return {wide, rows, columns};
}

// Bias of outputs first to first + count, zeros past them; x + -0 is x.
static Floats bias_of(const void* bias, int64_t dtype, int64_t first, int64_t count) {
  Floats added = all(-0.0f);
  if (bias) {
    with_dtype(dtype, [&](auto d) {
      added = read_some<d()>((const typename Element<d()>::Type*)bias + first, count);
    });
  }
  return added;
}

// Adds the bias to sums ([rows, PANEL]), rounds, and writes `count` of each row from `out` on.
static void write_sums(const float* sums, int64_t rows, int64_t count, Floats bias, void* out, int64_t dtype,
                       int64_t stride) {
  with_dtype(dtype, [&](auto d) {
    using Type = typename Element<d()>::Type;
    for (int64_t t = 0; t < rows; t++) write_some<d()>((Type*)out + t * stride, load(sums + t * PANEL) + bias, count);
  });
}
PF_INLINE int64_t element_bytes(int64_t dtype) { return dtype == PF_FLOAT32 ? 4 : 2; }

// Where results go. data: [rows, O] of `dtype`; bias: [O] or null.
struct Results {
  void* data;
  int64_t dtype, stride;
  const void* bias;
  int64_t bias_dtype;
};

// Rows first_row to first_row + rows of the results: x (or those of x that `order` names) times outputs from to last of
// a part, whose output 0 is column `shift` of the results.
static void multiply(const pf_weight_part* part, int64_t from, int64_t last, int64_t shift, const WideRows& x,
                     const int64_t* order, int64_t first_row, int64_t rows, const Results& results, pf_team* team) {
  const int64_t at_once = x.columns > WIDE ? WIDE_ROWS_AT_ONCE : ROWS_AT_ONCE;
  const int64_t floats = floats_of_panel(rows < at_once ? rows : at_once, x.columns);
  float* work = (float*)team->scratch(team, 1, floats * (int64_t)sizeof(float));
  for (int64_t t = first_row; t < first_row + rows; t += at_once) {
    const int64_t block = first_row + rows - t < at_once ? first_row + rows - t : at_once;
    for (int64_t o = from; o < last; o += PANEL) {
      const int64_t count = last - o < PANEL ? last - o : PANEL, column = shift + o;
      const Floats bias = bias_of(results.bias, results.bias_dtype, column, count);
      const auto finish = [&](int64_t i, int64_t n, const float* sums) {
        const int64_t at = ((t + i) * results.stride + column) * element_bytes(results.dtype);
        write_sums(sums, n, count, bias, (char*)results.data + at, results.dtype, results.stride);
      };
      multiply_panel(part, o, count, x, order ? order + t : nullptr, t, block, work, finish);
    }
  }
}

PF_INLINE int64_t groups_of(const pf_weight_part& part) { return (part.outputs + GROUP - 1) / GROUP; }

// Some rows times outputs begin to end, counted in groups of four, of which each part's last may have fewer.
static void multiply_groups(const pf_linear* a, const WideRows& x, int64_t first_row, int64_t rows, int64_t begin,
                            int64_t end, pf_team* team) {
  const Results results = {a->out, a->out_dtype, a->out_stride, a->bias, a->bias_dtype};
  int64_t first_group = 0, first_output = 0;
  for (int64_t p = 0; p < a->num_parts; p++) {
    const pf_weight_part* part = a->parts + p;
    const int64_t groups = groups_of(*part);
    const int64_t from = begin > first_group ? begin - first_group : 0;
    const int64_t to = end - first_group < groups ? end - first_group : groups;
    const int64_t last = to * GROUP < part->outputs ? to * GROUP : part->outputs;
    if (from < to) multiply(part, from * GROUP, last, first_output, x, nullptr, first_row, rows, results, team);
    first_group += groups;
    first_output += part->outputs;
  }
}

static void linear(const void* args, pf_team* team) {
  const pf_linear* a = (const pf_linear*)args;
  if (a->rows == 0) return;
  const WideRows x = wide_rows(a->x, a->x_dtype, a->x_stride, a->rows, a->in_features, team);
  int64_t groups = 0;
  for (int64_t p = 0; p < a->num_parts; p++) groups += groups_of(a->parts[p]);
  // Rows are shared too where a thread would get less than a panel of outputs.
  int64_t row_parts = 1;
  while (groups * row_parts * GROUP < PANEL * team->count && a->rows / (row_parts * 2) >= WIDENED_ALONE) row_parts *= 2;
  const Share mine = share(groups * row_parts, team);
  for (int64_t i = mine.begin; i < mine.end;) {
    const int64_t row_part = i / groups, begin = i % groups;
    const int64_t end = begin + mine.end - i < groups ? begin + mine.end - i : groups;
    const int64_t first = a->rows * row_part / row_parts, last = a->rows * (row_part + 1) / row_parts;
    multiply_groups(a, x, first, last - first, begin, end, team);
    i += end - begin;
  }
}

static void lookup_rows(const void* args, pf_team* team) {
  const pf_lookup_rows* a = (const pf_lookup_rows*)args;
  const Decode decode = decoder_of(a->part->kind);
  const Share mine = share(a->rows, team);
  float values[CHUNK];
  for (int64_t t = mine.begin; t < mine.end; t++) {
    const bool is_there = a->tokens[t] >= 0 && a->tokens[t] < a->outputs;
    const uint8_t* row = (const uint8_t*)a->part->data + (is_there ? a->tokens[t] : 0) * a->part->row_bytes;
    for (int64_t column = 0; column < a->in_features; column += CHUNK) {
      const int64_t left = a->in_features - column, columns = left < CHUNK ? left : CHUNK;
      decode(a->part, row, column, columns, values);
      with_dtype(a->out_dtype, [&](auto d) {
        typename Element<d()>::Type* out = (typename Element<d()>::Type*)a->out + t * a->out_stride + column;
        for (int64_t k = 0; k < columns; k += LANES) {
          write_some<d()>(out + k, is_there ? load(values + k) : all(NAN), columns - k);
        }
      });
    }
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
