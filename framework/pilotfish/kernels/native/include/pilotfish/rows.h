// Rows in memory, of float32, bfloat16 or float16; computed in float32 whatever they are.
#pragma once
#include "pilotfish/op.h"
#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

template <int DTYPE> struct Element { using Type = uint16_t; };
template <> struct Element<PF_FLOAT32> { using Type = float; };

template <int DTYPE>
PF_INLINE Floats read(const typename Element<DTYPE>::Type* p) {
  if constexpr (DTYPE == PF_FLOAT32) return load(p);
  else if constexpr (DTYPE == PF_BFLOAT16) return load_bf16(p);
  else return load_f16(p);
}

template <int DTYPE>
PF_INLINE void write(typename Element<DTYPE>::Type* p, Floats x) {
  if constexpr (DTYPE == PF_FLOAT32) store(p, x);
  else if constexpr (DTYPE == PF_BFLOAT16) store_bf16(p, x);
  else store_f16(p, x);
}

// The first n elements (n may be 16 or more); other lanes are zero, and their memory is not touched.
template <int DTYPE>
PF_INLINE Floats read_some(const typename Element<DTYPE>::Type* p, int64_t n) {
  if (n >= LANES) return read<DTYPE>(p);
  typename Element<DTYPE>::Type part[LANES] = {};
  memcpy(part, p, sizeof(part[0]) * (size_t)n);
  return read<DTYPE>(part);
}

template <int DTYPE>
PF_INLINE void write_some(typename Element<DTYPE>::Type* p, Floats x, int64_t n) {
  if (n >= LANES) return write<DTYPE>(p, x);
  typename Element<DTYPE>::Type part[LANES];
  write<DTYPE>(part, x);
  memcpy(p, part, sizeof(part[0]) * (size_t)n);
}

// x rounded to the dtype and back.
template <int DTYPE>
PF_INLINE Floats rounded(Floats x) {
  if constexpr (DTYPE == PF_FLOAT32) return x;
  else if constexpr (DTYPE == PF_BFLOAT16) return bits_as_floats(shift_left<16>(rounded_bf16(x)));
  else {
    uint16_t part[LANES];
    write<DTYPE>(part, x);
    return read<DTYPE>(part);
  }
}

// Calls `body` with the dtype as a constant: with_dtype(args->dtype, [&](auto dtype) { work<dtype()>(...); });
template <int N> struct Constant {
  constexpr int operator()() const { return N; }
};
template <typename Body>
PF_INLINE void with_dtype(int64_t dtype, Body body) {
  if (dtype == PF_FLOAT32) body(Constant<PF_FLOAT32>());
  else if (dtype == PF_BFLOAT16) body(Constant<PF_BFLOAT16>());
  else body(Constant<PF_FLOAT16>());
}

}  // namespace PF_ISA
}  // namespace pilotfish
