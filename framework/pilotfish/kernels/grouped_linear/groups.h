// Rows sorted by the group that each of them chose. Knows: indices. Does not know: weights, or who chose.
//
// Rows of one group keep their order, so what comes out is one thread's work and the same whoever does it.
#pragma once
#include <string.h>

#include "pilotfish/op.h"

extern "C" {
// rows: [pairs], the row of the pass that each sorted row is. places: [pairs], the sorted row of each (row, choice).
// spans: the number of groups with rows, then of each: group, first sorted row, end; room for 1 + 3 * groups.
typedef struct pf_row_groups {
  int64_t* rows;
  int64_t* places;
  int64_t* spans;
} pf_row_groups;
}

namespace pilotfish {
namespace PF_ISA {

// choice: [rows, chosen], from 0 to groups - 1. next: room for `groups` numbers.
static void group_rows(const int64_t* choice, int64_t rows, int64_t chosen, int64_t groups, const pf_row_groups& out,
                       int64_t* next) {
  memset(next, 0, sizeof(int64_t) * (size_t)groups);
  for (int64_t pair = 0; pair < rows * chosen; pair++) next[choice[pair]]++;
  int64_t end = 0, *span = out.spans + 1;
  for (int64_t group = 0; group < groups; group++) {
    const int64_t start = end;
    end += next[group];
    next[group] = start;
    if (end == start) continue;
    span[0] = group, span[1] = start, span[2] = end;
    span += 3;
  }
  out.spans[0] = (span - out.spans) / 3;
  for (int64_t pair = 0; pair < rows * chosen; pair++) {
    const int64_t place = next[choice[pair]]++;
    out.places[pair] = place;
    out.rows[place] = pair / chosen;
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
