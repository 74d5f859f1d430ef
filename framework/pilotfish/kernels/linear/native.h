// Linear layers, x @ weight.T + bias, on weights that stay as they lie in the file; and rows of such a weight alone.
//
// Knows: arguments, how threads share outputs and rows, and which way through the sums is fastest for how many rows.
// The sums' order stands in order.h, the weight's forms in blocks.h.
#pragma once
#include <math.h>

#include "linear/few.h"
#include "linear/tiles.h"
#include "linear/turned.h"

extern "C" {
// x: [rows, K] of x_dtype; out: [rows, O] of out_dtype; both contiguous in columns, strides of rows in elements.
// parts: together the O outputs, in order. bias: [O] of bias_dtype, or null.
// slices: products of as many runs of columns, K wide each, which x has one after the other, and out their results;
// num_parts parts for each of them, and no bias where there are several.
typedef struct pf_linear {
  const void* x;
  void* out;
  const pf_weight_part* parts;
  const void* bias;
  int64_t rows, in_features, slices, num_parts;
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
// Rows from which turning a panel of weights takes less time than joining lanes.
constexpr int64_t MANY_ROWS = 96;
// Rows multiplied before the next panel is decoded.
constexpr int64_t ROWS_AT_ONCE = 512;

// Rows of x as float32: as they are, or turned.
struct Rows {
  WideRows wide;
  bool is_turned;
};

// For each of some slices of x's columns: this thread's own copy where rows are few (or x itself), else the team's,
// which it waits for.
static void rows_of(const void* x, int64_t dtype, int64_t stride, int64_t rows, int64_t columns, int64_t slices,
                    bool is_turned, pf_team* team, Rows* found) {
  const int64_t bytes = WideRows::bytes(rows, columns), slice_bytes = columns * (dtype == PF_FLOAT32 ? 4 : 2);
  const bool is_plain = rows == 1 && dtype == PF_FLOAT32 && columns % LANES == 0;
  const bool is_few = is_plain || rows <= WIDENED_ALONE || team->count == 1;
  uint8_t* room = (uint8_t*)(is_few ? team->scratch(team, 0, slices * bytes) : team->shared(team, 0, slices * bytes));
  float* row = is_turned ? (float*)team->scratch(team, 1, WideRows::bytes(1, columns)) : nullptr;
  const Share mine = is_few ? Share{0, rows} : share(rows, team);
  for (int64_t s = 0; s < slices; s++) {
    const void* from = (const uint8_t*)x + s * slice_bytes;
    float* out = (float*)(room + s * bytes);
    found[s] = {{is_plain ? (const float*)from : out, rows, columns}, is_turned};
    if (is_plain) continue;
    with_dtype(dtype, [&](auto d) {
      if (is_turned) turned::turn_rows<d()>(from, stride, mine.begin, mine.end, row, out, columns);
      else widen_rows<d()>(from, stride, mine.begin, mine.end, out, columns);
    });
  }
  if (!is_few) team->wait(team);
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

// Where results go. data: [rows, O] of `dtype`; bias: [O] or null.
struct Results {
  void* data;
  int64_t dtype, stride;
  const void* bias;
  int64_t bias_dtype;

  // Adds the bias to sums ([rows, width]), rounds, and writes `count` of each row from column `column` on.
  void write(const float* sums, int64_t width, int64_t row, int64_t rows, int64_t column, int64_t count) const {
    with_dtype(dtype, [&](auto d) {
      auto* out = (typename Element<d()>::Type*)data + row * stride + column;
      for (int64_t o = 0; o < count; o += LANES) {
        const Floats added = bias_of(bias, bias_dtype, column + o, count - o);
        for (int64_t t = 0; t < rows; t++) {
          write_some<d()>(out + t * stride + o, load(sums + t * width + o) + added, count - o);
        }
      }
    });
  }
};

// Rows of the results, of x (turned, [rows, columns]), times outputs from to last of a part, whose output 0 is column
// `shift` of the results.
static void multiply_turned(const pf_weight_part* part, int64_t from, int64_t last, int64_t shift, const float* x,
                            int64_t columns, int64_t first_row, int64_t rows, const Results& results, pf_team* team) {
  float* work = (float*)team->scratch(team, 1, turned::floats_of_panel(rows, columns) * (int64_t)sizeof(float));
  for (int64_t o = from; o < last; o += turned::OUTPUTS) {
    const int64_t count = last - o < turned::OUTPUTS ? last - o : turned::OUTPUTS;
    turned::multiply_panel(part, o, count, x, columns, rows, work, [&](int64_t t, int64_t n, const float* sums) {
      results.write(sums, turned::OUTPUTS, first_row + t, n, shift + o, count);
    });
  }
}

// Rows first_row to first_row + rows of the results: x (or those of x that `order` names) times outputs from to last of
// a part, whose output 0 is column `shift` of the results.
static void multiply(const pf_weight_part* part, int64_t from, int64_t last, int64_t shift, const Rows& x,
                     const int64_t* order, int64_t first_row, int64_t rows, const Results& results, pf_team* team) {
  const int64_t columns = x.wide.columns, stride = WideRows::stride(columns);
  if (x.is_turned || rows >= MANY_ROWS) {
    const int64_t blocks = (rows + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, block = (rows + blocks - 1) / blocks;
    float* turned = x.is_turned ? nullptr : (float*)team->scratch(team, 2, WideRows::bytes(block, columns));
    for (int64_t t = first_row, end = first_row + rows; t < end; t += block) {
      const int64_t some = end - t < block ? end - t : block;
      for (int64_t i = 0; turned && i < some; i++) {
        turned::turn_row(x.wide.row(order ? order[t + i] : t + i), columns, turned + i * stride);
      }
      const float* these = turned ? turned : x.wide.row(t);
      multiply_turned(part, from, last, shift, these, columns, t, some, results, team);
    }
    return;
  }
  const int64_t floats = rows <= FEW_ROWS ? FEW_ROWS * PANEL : floats_of_panel(rows, columns);
  float* work = (float*)team->scratch(team, 1, floats * (int64_t)sizeof(float));
  for (int64_t o = from; o < last; o += PANEL) {
    const int64_t count = last - o < PANEL ? last - o : PANEL;
    const auto finish = [&](int64_t t, int64_t n, const float* sums) {
      results.write(sums, PANEL, first_row + t, n, shift + o, count);
    };
    if (rows <= FEW_ROWS) multiply_few(part, o, count, x.wide, order, first_row, rows, work, finish);
    else multiply_panel(part, o, count, x.wide, order, first_row, rows, work, finish);
  }
}

PF_INLINE int64_t groups_of(const pf_weight_part& part) { return (part.outputs + GROUP - 1) / GROUP; }

// Some rows times outputs begin to end of a slice, counted in groups of four, of which each part's last may have fewer.
static void multiply_groups(const pf_linear* a, int64_t slice, const Rows& x, int64_t first_row, int64_t rows,
                            int64_t begin, int64_t end, pf_team* team) {
  const Results results = {a->out, a->out_dtype, a->out_stride, a->bias, a->bias_dtype};
  const pf_weight_part* parts = a->parts + slice * a->num_parts;
  int64_t first_group = 0, first_output = 0;
  for (int64_t p = 0; slice && p < a->num_parts; p++) first_output += slice * parts[p].outputs;
  for (int64_t p = 0; p < a->num_parts; p++) {
    const pf_weight_part* part = parts + p;
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
  const bool is_turned = a->rows >= MANY_ROWS;
  Rows* x = (Rows*)team->scratch(team, 3, a->slices * (int64_t)sizeof(Rows));
  rows_of(a->x, a->x_dtype, a->x_stride, a->rows, a->in_features, a->slices, is_turned, team, x);
  int64_t groups = 0;
  for (int64_t p = 0; p < a->num_parts; p++) groups += groups_of(a->parts[p]);
  // Rows are shared too where a thread would get less than a panel of outputs.
  const int64_t panel = is_turned ? turned::OUTPUTS : PANEL, fewest = is_turned ? MANY_ROWS : WIDENED_ALONE;
  int64_t row_parts = 1;
  while (groups * row_parts * GROUP < panel * team->count && a->rows / (row_parts * 2) >= fewest) row_parts *= 2;
  // Few rows meet a panel's slices one after the other: so a row of the file is read whole, by one thread.
  const int64_t at_once = a->slices > 1 && a->rows <= FEW_ROWS ? PANEL / GROUP : groups;
  const Share mine = share(groups * row_parts, team);
  for (int64_t i = mine.begin; i < mine.end;) {
    const int64_t row_part = i / groups, begin = i % groups;
    const int64_t left = mine.end - i < groups - begin ? mine.end - i : groups - begin;
    const int64_t end = begin + (left < at_once ? left : at_once);
    const int64_t first = a->rows * row_part / row_parts, last = a->rows * (row_part + 1) / row_parts;
    for (int64_t s = 0; s < a->slices; s++) multiply_groups(a, s, x[s], first, last - first, begin, end, team);
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
