// Products of a few rows with some outputs of a weight, multiplied as they are decoded.
//
// Knows: rows of float32, forms of weights. Does not know: who shares the work, or where results go.
#pragma once
#include <type_traits>

#include "linear/blocks.h"
#include "linear/order.h"

namespace pilotfish {
namespace PF_ISA {

// R rows times four outputs, multiplied as they are decoded. outputs: where the four lie. rows: R of x; y: PANEL apart.
typedef void (*Dot)(const pf_weight_part* part, const uint8_t* const* outputs, const WideRows& x, const int64_t* rows,
                    float* y);

// N: outputs side by side, so that there are enough chains to overlap, and no more than registers.
template <typename Reader, int R, int N>
static void dot_rows(const pf_weight_part* part, const uint8_t* const* outputs, const WideRows& x, const int64_t* rows,
                     float* y) {
  Floats spans[R][GROUP];
  for (int first = 0; first < GROUP; first += N) {
    for (int64_t span = 0; span == 0 || span < x.columns; span += SPAN) {
      Floats sums[R][N];
      for (int r = 0; r < R; r++) {
        for (int o = 0; o < N; o++) sums[r][o] = zero();
      }
      const int64_t end = x.columns - span < SPAN ? x.columns : span + SPAN;
      for (int64_t column = span; column < end; column += CHUNK) {
        const float* row[R];
        for (int r = 0; r < R; r++) row[r] = x.row(rows[r]) + column;
        const auto take = [&](int o, int64_t k, Floats numbers) __attribute__((always_inline)) {
          for (int r = 0; r < R; r++) sums[r][o] = fma(numbers, load(row[r] + k), sums[r][o]);
        };
        Reader::template read<N>(part, outputs + first, column, end - column < CHUNK ? end - column : CHUNK, take);
      }
      for (int r = 0; r < R; r++) {
        for (int o = 0; o < N; o++) spans[r][first + o] = span ? spans[r][first + o] + sums[r][o] : sums[r][o];
      }
    }
  }
  for (int r = 0; r < R; r++) four_tree_sums(spans[r], y + r * PANEL);
}

struct Few {
  int64_t rows;
  Dot dot;
};
// Whether memory gives a row more slowly than it is multiplied with several others: read in one stream, it comes faster.
template <typename Reader> constexpr bool IS_BOUND_BY_MEMORY = std::is_same_v<Reader, FloatRows<PF_FLOAT32>>;

// A dot for `rows` rows, or the next more.
template <typename Reader> static Few few_of(int64_t rows) {
  if (rows <= 1) return {1, dot_rows<Reader, 1, 4>};
#if defined(__AVX512F__)
  constexpr bool ONE = IS_BOUND_BY_MEMORY<Reader>;
  if (rows <= 2) return {2, dot_rows<Reader, 2, 4>};
  if (rows <= 3) return {3, dot_rows<Reader, 3, ONE ? 1 : 4>};
  if (rows <= 4) return {4, dot_rows<Reader, 4, ONE ? 1 : 4>};
  if (rows <= 6) return {6, dot_rows<Reader, 6, ONE ? 1 : 2>};
  return {8, dot_rows<Reader, 8, ONE ? 1 : 2>};
#else
  if (rows <= 2) return {2, dot_rows<Reader, 2, 2>};
  if (rows <= 4) return {4, dot_rows<Reader, 4, 1>};
  return {6, dot_rows<Reader, 6, 1>};
#endif
}
#if defined(__AVX512F__)
constexpr int64_t FEW_ROWS = 8;
#else
constexpr int64_t FEW_ROWS = 6;
#endif

// Products of some rows (at most FEW_ROWS) with outputs first to first + count (at most PANEL) of a part.
// order: of the results' rows, which rows of x, or null where they are those. y: [FEW_ROWS, PANEL], for the sums.
// finish(t, n, y): takes the sums of rows t to t + n, [n, PANEL].
template <typename Finish>
static void multiply_few(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x,
                         const int64_t* order, int64_t first_row, int64_t num_rows, float* y, Finish finish) {
  Few few = {};
  with_reader(part->kind, [&](auto reader) { few = few_of<decltype(reader)>(num_rows); });
  int64_t rows[FEW_ROWS];
  for (int64_t t = 0; t < few.rows; t++) {  // the last again, where there are fewer
    const int64_t at = first_row + (t < num_rows ? t : num_rows - 1);
    rows[t] = order ? order[at] : at;
  }
  for (int64_t begin = 0; begin < count; begin += GROUP) {
    const uint8_t* outputs[GROUP];
    for (int64_t o = 0; o < GROUP; o++) {  // the last again, where fewer than four are left
      const int64_t output = first + (begin + o < count ? begin + o : count - 1);
      outputs[o] = (const uint8_t*)part->data + output * part->row_bytes;
    }
    few.dot(part, outputs, x, rows, y + begin);
  }
  finish(0, num_rows, y);
}

}  // namespace PF_ISA
}  // namespace pilotfish
