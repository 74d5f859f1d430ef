// Grouped linear: rows sorted by group, each group with a weight of its own, all in one call.
//
// Knows: which rows go to which weight, and how threads share them. Sums: as in linear/order.h, so a row has the bits
// that `linear` gives it with its group's weight alone.
#pragma once
#include "grouped_linear/groups.h"
#include "linear/native.h"

extern "C" {
// parts: one a group, each of O rows of in_features columns. spans: as in pf_row_groups.
// x: [x_rows, in_features]; rows: the row of x that each sorted row is, or null where x is sorted.
// out: [sorted rows, O].
typedef struct pf_grouped_linear {
  const void* x;
  void* out;
  const pf_weight_part* parts;
  const int64_t* rows;
  const int64_t* spans;
  int64_t x_rows, in_features;
  int64_t x_dtype, x_stride, out_dtype, out_stride;
} pf_grouped_linear;
}

namespace pilotfish {
namespace PF_ISA {

// What decoding a weight's numbers costs, in rows that could be multiplied meanwhile.
constexpr int64_t DECODING_ROWS = 8;

static void grouped_linear(const void* args, pf_team* team) {
  const pf_grouped_linear* a = (const pf_grouped_linear*)args;
  const int64_t num_spans = a->spans[0], *const spans = a->spans + 1;
  if (num_spans == 0) return;
  Rows x;
  rows_of(a->x, a->x_dtype, a->x_stride, a->x_rows, a->in_features, 1, false, team, &x);
  const Results results = {a->out, a->out_dtype, a->out_stride, nullptr, 0};
  // Threads share the cost of all spans in a row; a group of four outputs is one thread's.
  int64_t total = 0;
  for (int64_t s = 0; s < num_spans; s++) {
    const int64_t* span = spans + 3 * s;
    total += groups_of(a->parts[span[0]]) * (DECODING_ROWS + span[2] - span[1]);
  }
  const Share mine = share(total, team);
  int64_t before = 0;
  for (int64_t s = 0; s < num_spans; s++) {
    const int64_t *span = spans + 3 * s, rows = span[2] - span[1], cost = DECODING_ROWS + rows;
    const pf_weight_part* part = a->parts + span[0];
    const int64_t groups = groups_of(*part);
    const int64_t from = mine.begin > before ? (mine.begin - before + cost - 1) / cost : 0;
    const int64_t until = mine.end > before ? (mine.end - before + cost - 1) / cost : 0;
    const int64_t to = until < groups ? until : groups;
    const int64_t last = to * GROUP < part->outputs ? to * GROUP : part->outputs;
    if (from < to) multiply(part, from * GROUP, last, 0, x, a->rows, span[1], rows, results, team);
    before += groups * cost;
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
