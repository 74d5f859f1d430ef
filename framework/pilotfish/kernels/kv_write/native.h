// Rows of keys and values into their slots: bits are copied, or numbers rounded where pages are narrower than rows.
#pragma once
#include "pilotfish/rows.h"

extern "C" {
// kv: [rows] of `width` elements of `dtype`, `row_stride` elements apart. slots: [rows]. cache: slots of `width`
// elements of `cache_dtype`; slot s begins at s * width.
typedef struct pf_write_kv {
  const void* kv;
  void* cache;
  const int64_t* slots;
  int64_t rows, width, row_stride, dtype, cache_dtype;
} pf_write_kv;
}

namespace pilotfish {
namespace PF_ISA {

static void write_kv(const void* args, pf_team* team) {
  const pf_write_kv* a = (const pf_write_kv*)args;
  const Share mine = share(a->rows, team);
  with_dtype(a->dtype, [&](auto d) {
    using From = typename Element<d()>::Type;
    with_dtype(a->cache_dtype, [&](auto c) {
      using To = typename Element<c()>::Type;
      for (int64_t t = mine.begin; t < mine.end; t++) {
        const From* row = (const From*)a->kv + t * a->row_stride;
        To* slot = (To*)a->cache + a->slots[t] * a->width;
        if constexpr (d() == c()) {
          memcpy(slot, row, sizeof(To) * (size_t)a->width);
        } else {
          for (int64_t k = 0; k < a->width; k += LANES) {
            write_some<c()>(slot + k, read_some<d()>(row + k, a->width - k), a->width - k);
          }
        }
      }
    });
  });
}

}  // namespace PF_ISA
}  // namespace pilotfish
