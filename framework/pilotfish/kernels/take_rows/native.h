// Rows copied from the places that an index names.
#pragma once
#include <string.h>

#include "pilotfish/op.h"

extern "C" {
// x: rows of `row_bytes` bytes; index: [rows]; out: [rows] of the same.
typedef struct pf_take_rows {
  const void* x;
  const int64_t* index;
  void* out;
  int64_t rows, row_bytes;
} pf_take_rows;
}

namespace pilotfish {
namespace PF_ISA {

static void take_rows(const void* args, pf_team* team) {
  const pf_take_rows* a = (const pf_take_rows*)args;
  const Share mine = share(a->rows, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    memcpy((char*)a->out + i * a->row_bytes, (const char*)a->x + a->index[i] * a->row_bytes, (size_t)a->row_bytes);
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
