// Keys and values of all layers, made of one projection, into their pages: norm and rotation of every key head.
//
// The operations are those of rms_norm (gain after a rounding), apply_rope (halves) and write_kv, in this order.
#pragma once
#include "rms_norm/native.h"
#include "rope/native.h"

extern "C" {
// kv: [T, layers, 2, heads, width] of `dtype`, contiguous. weight: [layers, width] of it.
// cos, sin: [T, rotated] float32, contiguous.
// caches: [layers] addresses of pages, whose slots hold [2, heads, width] of `cache_dtype`. slots: [rows], rows <= T.
typedef struct pf_write_context_kv {
  const void* kv;
  const void* weight;
  const float* cos;
  const float* sin;
  void* const* caches;
  const int64_t* slots;
  int64_t rows, layers, heads, width, rotated;
  int64_t dtype, cache_dtype;
  float eps;
} pf_write_context_kv;
}

namespace pilotfish {
namespace PF_ISA {

template <int DTYPE, int CACHE_DTYPE>
static void copy_head(const typename Element<DTYPE>::Type* from, typename Element<CACHE_DTYPE>::Type* to,
                      int64_t width) {
  if constexpr (DTYPE == CACHE_DTYPE) {
    memcpy(to, from, sizeof(*from) * (size_t)width);
  } else {
    for (int64_t k = 0; k < width; k += LANES) {
      write_some<CACHE_DTYPE>(to + k, read_some<DTYPE>(from + k, width - k), width - k);
    }
  }
}

template <int DTYPE, int CACHE_DTYPE>
static void write_context_kv_of(const pf_write_context_kv* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  using CacheType = typename Element<CACHE_DTYPE>::Type;
  const int64_t width = a->width, half = a->heads * width;
  Type* head = (Type*)team->scratch(team, 0, (int64_t)sizeof(Type) * width);
  const Share mine = share(a->rows * a->layers, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / a->layers, layer = i % a->layers;
    const Type* keys = (const Type*)a->kv + i * 2 * half;
    const Type* weight = (const Type*)a->weight + layer * width;
    CacheType* slot = (CacheType*)a->caches[layer] + a->slots[row] * 2 * half;
    const float *cos = a->cos + row * a->rotated, *sin = a->sin + row * a->rotated;
    for (int64_t n = 0; n < a->heads; n++) {
      const Type* key = keys + n * width;
      const Floats scale = all(1.0f / sqrtf(sum_of_squares<DTYPE>(key, width) / (float)width + a->eps));
      for (int64_t k = 0; k < width; k += LANES) {
        const Floats normed = rounded<DTYPE>(read_some<DTYPE>(key + k, width - k) * scale);
        write_some<DTYPE>(head + k, normed * read_some<DTYPE>(weight + k, width - k), width - k);
      }
      turn_halves<DTYPE>(head, cos, sin, a->rotated / 2);
      copy_head<DTYPE, CACHE_DTYPE>(head, slot + n * width, width);
    }
    copy_head<DTYPE, CACHE_DTYPE>(keys + half, slot + half, half);
  }
}

static void write_context_kv(const void* args, pf_team* team) {
  const pf_write_context_kv* a = (const pf_write_context_kv*)args;
  with_dtype(a->dtype, [&](auto dtype) {
    with_dtype(a->cache_dtype, [&](auto cache) { write_context_kv_of<dtype(), cache()>(a, team); });
  });
}

}  // namespace PF_ISA
}  // namespace pilotfish
