// Functions of single numbers, over rows of them. Whoever computes an element, and wherever it lies, it goes through
// the same operations in a lane of its own; float32 inside, one rounding.
#pragma once
#include "pilotfish/functions.h"
#include "pilotfish/rows.h"

extern "C" {
// x: [rows, width] of `dtype`, each row contiguous. out: [rows, width] contiguous. Both may be the same memory.
typedef struct pf_elementwise {
  const void* x;
  void* out;
  int64_t rows, width, row_stride;
  int64_t dtype;
  int64_t function;  // an ElementwiseFunction
  float limit;       // of OF_CLIP: to -limit and limit
} pf_elementwise;

// Softmax over the width of rows, likewise.
typedef struct pf_softmax {
  const void* x;
  void* out;
  int64_t rows, width, row_stride;
  int64_t dtype;
} pf_softmax;
}

namespace pilotfish {
namespace PF_ISA {

// As native.py numbers them.
enum ElementwiseFunction {
  OF_SILU, OF_GELU, OF_GELU_TANH, OF_SIGMOID, OF_TANH, OF_SOFTPLUS, OF_EXP, OF_RELU_SQUARED, OF_LOG, OF_ERF,
  OF_CLIP,
};

constexpr int64_t ELEMENTWISE_PIECE = 1024;  // elements that one thread takes at a time

template <int DTYPE, typename Function>
static void elementwise_of(const pf_elementwise* a, const pf_team* team, Function function) {
  using Type = typename Element<DTYPE>::Type;
  const int64_t pieces = (a->width + ELEMENTWISE_PIECE - 1) / ELEMENTWISE_PIECE;
  const Share mine = share(a->rows * pieces, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    const int64_t row = i / pieces, first = i % pieces * ELEMENTWISE_PIECE;
    const int64_t left = a->width - first, count = left < ELEMENTWISE_PIECE ? left : ELEMENTWISE_PIECE;
    const Type* x = (const Type*)a->x + row * a->row_stride + first;
    Type* out = (Type*)a->out + row * a->width + first;
    for (int64_t k = 0; k < count; k += LANES) {
      write_some<DTYPE>(out + k, function(read_some<DTYPE>(x + k, count - k)), count - k);
    }
  }
}

template <int DTYPE>
static void elementwise_by_function(const pf_elementwise* a, const pf_team* team) {
  switch (a->function) {
    case OF_SILU: return elementwise_of<DTYPE>(a, team, [](Floats x) { return silu(x); });
    case OF_GELU: return elementwise_of<DTYPE>(a, team, [](Floats x) { return gelu(x); });
    case OF_GELU_TANH: return elementwise_of<DTYPE>(a, team, [](Floats x) { return gelu_tanh(x); });
    case OF_SIGMOID: return elementwise_of<DTYPE>(a, team, [](Floats x) { return sigmoid(x); });
    case OF_TANH: return elementwise_of<DTYPE>(a, team, [](Floats x) { return tanh(x); });
    case OF_SOFTPLUS: return elementwise_of<DTYPE>(a, team, [](Floats x) { return softplus(x); });
    case OF_EXP: return elementwise_of<DTYPE>(a, team, [](Floats x) { return exp(x); });
    case OF_RELU_SQUARED: return elementwise_of<DTYPE>(a, team, [](Floats x) { return relu_squared(x); });
    case OF_LOG: return elementwise_of<DTYPE>(a, team, [](Floats x) { return log(x); });
    case OF_ERF: return elementwise_of<DTYPE>(a, team, [](Floats x) { return erf(x); });
    default: {
      const Floats limit = all(a->limit);
      return elementwise_of<DTYPE>(a, team, [limit](Floats x) {
        return smaller(limit, larger(negative(limit), x));  // in this order a NaN passes
      });
    }
  }
}

static void elementwise(const void* args, pf_team* team) {
  const pf_elementwise* a = (const pf_elementwise*)args;
  with_dtype(a->dtype, [&](auto dtype) { elementwise_by_function<dtype()>(a, team); });
}

// A softmax's row is one thread's: its largest number, then exp(x - largest) in 16 lanes, whose sums `tree_sum` joins,
// then one division each.

// The largest of a row's numbers; lanes(k) gives them from column k on. What is no number may be passed over: its
// exponential is none either.
template <typename Lanes>
PF_INLINE float largest_of(int64_t width, Lanes lanes) {
  Floats best = all(-INFINITY);
  for (int64_t k = 0; k < width; k += LANES) {
    Floats part = lanes(k);
    if (width - k < LANES) part = select(less(lane_numbers(), all_ints((int32_t)(width - k))), part, all(-INFINITY));
    best = larger(best, part);
  }
  float each[LANES], found = -INFINITY;
  store(each, best);
  for (float one : each) found = one > found ? one : found;
  return found;
}

// each: room for `width` numbers, rounded up to 16; in float32 it may be `out`, if that has the room.
template <int DTYPE, typename Type>
PF_INLINE void softmax_row(const Type* x, Type* out, int64_t width, float* each) {
  const Floats largest = all(largest_of(width, [&](int64_t k) { return read_some<DTYPE>(x + k, width - k); }));
  Floats sum = zero();
  for (int64_t k = 0; k < width; k += LANES) {
    Floats part = exp(read_some<DTYPE>(x + k, width - k) - largest);
    if (width - k < LANES) part = select(less(lane_numbers(), all_ints((int32_t)(width - k))), part, zero());
    store(each + k, part);
    sum = sum + part;
  }
  const Floats total = all(tree_sum(sum));
  for (int64_t k = 0; k < width; k += LANES) write_some<DTYPE>(out + k, load(each + k) / total, width - k);
}

template <int DTYPE>
static void softmax_of(const pf_softmax* a, pf_team* team) {
  using Type = typename Element<DTYPE>::Type;
  const Share mine = share(a->rows, team);
  float* each = (float*)team->scratch(team, 0, (a->width + LANES) * (int64_t)sizeof(float));
  for (int64_t row = mine.begin; row < mine.end; row++) {
    softmax_row<DTYPE>((const Type*)a->x + row * a->row_stride, (Type*)a->out + row * a->width, a->width, each);
  }
}

static void softmax(const void* args, pf_team* team) {
  const pf_softmax* a = (const pf_softmax*)args;
  with_dtype(a->dtype, [&](auto dtype) { softmax_of<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
