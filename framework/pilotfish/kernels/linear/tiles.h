// Products of some rows with some outputs of a weight, in tiles that fill the registers: a lane is a column.
//
// Knows: rows of float32, decoded weights. Does not know: who shares the work, or where results go.
#pragma once
#include "linear/blocks.h"
#include "linear/order.h"

namespace pilotfish {
namespace PF_ISA {

// Columns of decoded outputs that the first cache holds beside rows.
constexpr int64_t PIECE = 1024;
// A tile: as many sums as there are registers for.
constexpr int64_t TILE_ROWS = 3;
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t TILE_OUTPUTS = 4;
#else
constexpr int64_t TILE_OUTPUTS = 8;
#endif

// Sums of a panel that are under way, [rows, PANEL, LANES] each: of the chain, and of the spans that are over. Where a
// row is one piece, those of a tile alone.
struct Sums {
  float *chain, *spans;
  PF_INLINE int64_t rows_of(int64_t rows, int64_t columns) { return columns > PIECE ? rows : TILE_ROWS; }
  PF_INLINE int64_t floats(int64_t rows, int64_t columns) {
    return rows_of(rows, columns) * PANEL * LANES * (columns > SPAN ? 2 : 1);
  }
};

// R rows times the outputs of a tile over one piece: the chain goes on, or begins. w: rows PIECE apart.
// chain: [R, TILE_OUTPUTS, LANES], rows PANEL * LANES apart.
template <int R>
static void multiply_tile(const float* const* x, const float* w, int64_t width, bool begins, float* chain) {
  for (int64_t lane = 0; lane < LANES; lane += PART_LANES) {
    Part sums[R][TILE_OUTPUTS];
    for (int r = 0; r < R; r++) {
      for (int o = 0; o < TILE_OUTPUTS; o++) {
        sums[r][o] = begins ? zero_part() : load_part(chain + (r * PANEL + o) * LANES + lane);
      }
    }
#pragma GCC unroll 4
    for (int64_t k = lane; k < width; k += LANES) {
      Part row[R];
      for (int r = 0; r < R; r++) row[r] = in_register(load_part(x[r] + k));
      for (int o = 0; o < TILE_OUTPUTS; o++) {
        const Part weight = in_register(load_part(w + o * PIECE + k));
        for (int r = 0; r < R; r++) sums[r][o] = fma_part(weight, row[r], sums[r][o]);
      }
    }
    for (int r = 0; r < R; r++) {
      for (int o = 0; o < TILE_OUTPUTS; o++) store_part(chain + (r * PANEL + o) * LANES + lane, sums[r][o]);
    }
  }
}
static void multiply_tile_of(int64_t rows, const float* const* x, const float* w, int64_t width, bool begins,
                             float* chain) {
  if (rows == 1) multiply_tile<1>(x, w, width, begins, chain);
  else if (rows == 2) multiply_tile<2>(x, w, width, begins, chain);
  else multiply_tile<3>(x, w, width, begins, chain);
}

// A span is over: its chain is added to the spans before it; where it was the last, y takes the sums.
static void end_span(const float* chain, float* spans, bool is_first, bool is_last, float* y) {
  for (int64_t o = 0; o < TILE_OUTPUTS; o += GROUP) {
    Floats sums[GROUP];
    for (int64_t i = 0; i < GROUP; i++) {
      const int64_t at = (o + i) * LANES;
      sums[i] = load(chain + at);
      if (!is_first) sums[i] = load(spans + at) + sums[i];
      if (!is_last) store(spans + at, sums[i]);
    }
    if (is_last) four_tree_sums(sums, y + o);
  }
}

// Floats that `multiply_panel` works in.
static int64_t floats_of_panel(int64_t rows, int64_t columns) {
  return rows * PANEL + Sums::floats(rows, columns);
}

// Products of some rows with outputs first to first + count (at most PANEL) of a part.
// order: of the results' rows, which rows of x, or null where they are those. work: [floats_of_panel].
// finish(t, n, y): takes the sums of rows t to t + n, [n, PANEL], as soon as they are whole.
template <typename Finish>
static void multiply_panel(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x,
                           const int64_t* order, int64_t first_row, int64_t rows, float* work, Finish finish) {
  float* y = work;
  alignas(64) float panel[TILE_OUTPUTS * PIECE];
  const Decode decode = decoder_of(part->kind);
  const int64_t padded = WideRows::padded(x.columns);
  const bool is_one_piece = padded <= PIECE;
  float *chains = y + rows * PANEL, *spans = chains + rows * PANEL * LANES;
  for (int64_t column = 0; column == 0 || column < padded; column += PIECE) {
    const int64_t left = x.columns - column, columns = left < PIECE ? left : PIECE;
    const bool is_last = column + PIECE >= padded, ends_span = is_last || (column + PIECE) % SPAN == 0;
    for (int64_t begin = 0; begin < count; begin += TILE_OUTPUTS) {
      for (int64_t o = 0; o < TILE_OUTPUTS; o++) {  // the last again, where fewer are left
        const int64_t output = first + (begin + o < count ? begin + o : count - 1);
        const uint8_t* row = (const uint8_t*)part->data + output * part->row_bytes;
        for (int64_t k = 0; k < columns; k += CHUNK) {
          decode(part, row, column + k, columns - k < CHUNK ? columns - k : CHUNK, panel + o * PIECE + k);
        }
      }
      for (int64_t t = 0; t < rows;) {
        const int64_t tiles = (rows - t + TILE_ROWS - 1) / TILE_ROWS, tile_rows = (rows - t + tiles - 1) / tiles;
        const float* row[TILE_ROWS];
        for (int64_t r = 0; r < tile_rows; r++) {
          const int64_t at = first_row + t + r;
          row[r] = x.row(order ? order[at] : at) + column;
        }
        const int64_t at = ((is_one_piece ? 0 : t) * PANEL + begin) * LANES;
        multiply_tile_of(tile_rows, row, panel, WideRows::padded(columns), column % SPAN == 0, chains + at);
        for (int64_t r = 0; ends_span && r < tile_rows; r++) {
          const int64_t i = at + r * PANEL * LANES;
          end_span(chains + i, spans + i, column < SPAN, is_last, y + (t + r) * PANEL + begin);
        }
        if (is_last && begin + TILE_OUTPUTS >= count) finish(t, tile_rows, y + t * PANEL);
        t += tile_rows;
      }
    }
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
