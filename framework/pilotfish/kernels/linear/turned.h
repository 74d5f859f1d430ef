// Products of many rows with some outputs of a weight: a register's lane is an output, so no lanes have to be joined.
//
// Knows: rows of float32, decoded weights. Does not know: who shares the work, or where results go.
// The lanes of order.h are chains one after the other here: rows and weights are turned, so that the columns of one
// lane lie side by side. The sums are the same, in the same order.
#pragma once
#include "linear/blocks.h"
#include "linear/order.h"

namespace pilotfish {
namespace PF_ISA {
namespace turned {

// A tile: rows times registers of outputs, as many sums as there are registers for.
constexpr int64_t TILE_ROWS = 6;
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t TILE_PARTS = 2;
#else
constexpr int64_t TILE_PARTS = 4;
#endif
// Outputs of a panel, whose decoded numbers stay in the second cache.
constexpr int64_t OUTPUTS = TILE_PARTS * PART_LANES;
constexpr int TREE_DEPTH = 4;
// Columns decoded before they are turned: a multiple of every block's. The first cache holds sixteen outputs of them.
constexpr int64_t DECODED = 256;

// Columns, with padding, of the span that begins at `column`.
PF_INLINE int64_t span_columns(int64_t column, int64_t columns) {
  return WideRows::padded(columns - column < SPAN ? columns - column : SPAN);
}

// Sixteen runs of sixteen columns, `stride` apart: column LANE_ORDER[i] of run r goes to to[i * to_stride + r].
static void turn(const float* runs, int64_t stride, float* to, int64_t to_stride) {
  for (int64_t r = 0; r < LANES; r += PART_LANES) {
    for (int64_t column = 0; column < LANES; column += 4) {
      Part parts[4];
      for (int64_t i = 0; i < 4; i++) parts[i] = load_fours(runs + (r + i) * stride + column, 4 * stride);
      turn_fours(parts);
      for (int64_t i = 0; i < 4; i++) store_part(to + LANE_ORDER[column + i] * to_stride + r, parts[i]);
    }
  }
}

// A widened row turned: of each span, LANES chains of as many columns as the span has steps. out: as long as the row.
static void turn_row(const float* row, int64_t columns, float* out) {
  for (int64_t span = 0; span < columns; span += SPAN) {
    const int64_t steps = span_columns(span, columns) / LANES;
    int64_t step = 0;
    for (; step + LANES <= steps; step += LANES) turn(row + span + step * LANES, LANES, out + span + step, steps);
    for (; step < steps; step++) {
      for (int64_t i = 0; i < LANES; i++) out[span + i * steps + step] = row[span + step * LANES + LANE_ORDER[i]];
    }
  }
}

// Rows first to end of x, [rows, columns] of a dtype, widened and turned into their places in `out`. row: room for one.
template <int DTYPE>
static void turn_rows(const void* x, int64_t stride, int64_t first, int64_t end, float* row, float* out,
                      int64_t columns) {
  for (int64_t t = first; t < end; t++) {
    widen_rows<DTYPE>((const typename Element<DTYPE>::Type*)x + t * stride, stride, 0, 1, row, columns);
    turn_row(row, columns, out + t * WideRows::stride(columns));
  }
}

// Floats from one chain of a panel to the next; odd in cache lines, so that chains lie in different sets of a cache.
PF_INLINE int64_t chain_stride(int64_t steps, int64_t width) { return rounded_up(steps * width, 2 * LANES) + LANES; }

// Decodes `columns` columns, from `span` on, of outputs first to first + count of a part: [LANES, steps, width].
static void decode_panel(const pf_weight_part* part, int64_t first, int64_t count, int64_t span, int64_t columns,
                         int64_t width, float* panel) {
  const Decode decode = decoder_of(part->kind);
  const int64_t steps = WideRows::padded(columns) / LANES, stride = chain_stride(steps, width);
  alignas(64) float numbers[LANES * DECODED];
  for (int64_t o = 0; o < count; o += LANES) {
    for (int64_t k = 0; k < columns; k += DECODED) {
      const int64_t some = columns - k < DECODED ? columns - k : DECODED;
      for (int64_t i = 0; i < LANES; i++) {  // the last again, where fewer are left
        const int64_t output = first + (o + i < count ? o + i : count - 1);
        decode(part, (const uint8_t*)part->data + output * part->row_bytes, span + k, some, numbers + i * DECODED);
      }
      for (int64_t step = 0; step * LANES < some; step++) {
        turn(numbers + step * LANES, DECODED, panel + (k / LANES + step) * width + o, stride);
      }
    }
  }
}

// The sums of R rows times P registers of outputs.
template <int R, int P> struct Tile {
  static constexpr int64_t WIDTH = P * PART_LANES, FLOATS = R * WIDTH;
  Part sums[R][P];

  // The chain of one lane. column: where it begins in each row; weights: [steps, WIDTH].
  PF_FORCED void multiply(const float* const* rows, int64_t column, const float* weights, int64_t steps) {
    for (int r = 0; r < R; r++) {
      for (int p = 0; p < P; p++) sums[r][p] = zero_part();
    }
#pragma GCC unroll 4
    for (int64_t step = column; step < column + steps; step++, weights += WIDTH) {
      Part part[P];
      for (int p = 0; p < P; p++) part[p] = in_register(load_part(weights + p * PART_LANES));
      for (int r = 0; r < R; r++) {
        const Part number = in_register(all_part(rows[r] + step));
        for (int p = 0; p < P; p++) sums[r][p] = fma_part(part[p], number, sums[r][p]);
      }
    }
  }
  // Sums that came earlier, of the same tile, plus these.
  PF_FORCED void add_to(const float* earlier) {
    for (int r = 0; r < R; r++) {
      for (int p = 0; p < P; p++) {
        sums[r][p] = in_register(add_part(load_part(earlier + r * WIDTH + p * PART_LANES), sums[r][p]));
      }
    }
  }
  PF_FORCED void store(float* to, int64_t stride = WIDTH) const {
    for (int r = 0; r < R; r++) {
      for (int p = 0; p < P; p++) store_part(to + r * stride + p * PART_LANES, sums[r][p]);
    }
  }
};

// R rows times P registers of a panel's outputs over one span. x: R turned rows, from the span on. spans: [LANES, R, P]
// registers, what the spans before it came to, and then what they come to with it. y: [R, OUTPUTS], after the last.
template <int R, int P>
static void multiply_tile(const float* const* x, const float* panel, int64_t steps, bool is_first, bool is_last,
                          float* spans, float* y) {
  using Sums = Tile<R, P>;
  alignas(64) float tree[TREE_DEPTH][Sums::FLOATS];
  const float* rows[R];
  for (int r = 0; r < R; r++) rows[r] = x[r];
  for (int i = 0; i < LANES; i++) {
    Sums tile;
    tile.multiply(rows, i * steps, panel + i * chain_stride(steps, Sums::WIDTH), steps);
    if (!is_first) tile.add_to(spans + i * Sums::FLOATS);
    if (!is_last) {
      tile.store(spans + i * Sums::FLOATS);
      continue;
    }
    if (i % 2 == 0) {
      tile.store(tree[0]);
      continue;
    }
    tile.add_to(tree[0]);
    int depth = 1;
    for (; i >> depth & 1; depth++) tile.add_to(tree[depth]);
    if (depth < TREE_DEPTH) tile.store(tree[depth]);
    else tile.store(y, OUTPUTS);
  }
}

typedef void (*MultiplyTile)(const float* const* x, const float* panel, int64_t steps, bool is_first, bool is_last,
                             float* spans, float* y);
template <int P> static MultiplyTile tile_with(int64_t rows) {
  static const MultiplyTile tiles[] = {multiply_tile<1, P>, multiply_tile<2, P>, multiply_tile<3, P>,
                                       multiply_tile<4, P>, multiply_tile<5, P>, multiply_tile<6, P>};
  return tiles[rows - 1];
}
static MultiplyTile tile_of(int64_t rows, [[maybe_unused]] int64_t parts) {
#if defined(__AVX512F__)
  if (parts == 1) return tile_with<1>(rows);
  if (parts == 2) return tile_with<2>(rows);
  if (parts == 3) return tile_with<3>(rows);
#endif
  return tile_with<TILE_PARTS>(rows);
}

// Floats that `multiply_panel` works in: the panel, sums of a tile, and of all rows between spans.
static int64_t floats_of_panel(int64_t rows, int64_t columns) {
  const int64_t panel = LANES * chain_stride(span_columns(0, columns) / LANES, OUTPUTS);
  return panel + OUTPUTS * (TILE_ROWS + (columns > SPAN ? rows * LANES : 0));
}

// Products of turned rows with outputs first to first + count (at most OUTPUTS) of a part.
// x: [rows, columns], WideRows::stride apart. work: [floats_of_panel].
// finish(t, n, y): takes the sums of rows t to t + n, [n, OUTPUTS], as soon as they are whole.
template <typename Finish>
static void multiply_panel(const pf_weight_part* part, int64_t first, int64_t count, const float* x, int64_t columns,
                           int64_t rows, float* work, Finish finish) {
  float *y = work, *spans = y + TILE_ROWS * OUTPUTS, *panel = spans + (columns > SPAN ? rows * OUTPUTS * LANES : 0);
  const int64_t width = rounded_up(count, LANES), stride = WideRows::stride(columns);
  for (int64_t span = 0; span == 0 || span < columns; span += SPAN) {
    const int64_t left = columns - span, steps = span_columns(span, columns) / LANES;
    const bool is_last = left <= SPAN;
    decode_panel(part, first, count, span, left < SPAN ? left : SPAN, width, panel);
    for (int64_t t = 0; t < rows;) {
      const int64_t tiles = (rows - t + TILE_ROWS - 1) / TILE_ROWS, tile_rows = (rows - t + tiles - 1) / tiles;
      const float* row[TILE_ROWS];
      for (int64_t r = 0; r < tile_rows; r++) row[r] = x + (t + r) * stride + span;
      const MultiplyTile multiply = tile_of(tile_rows, width / PART_LANES);
      multiply(row, panel, steps, span == 0, is_last, spans + t * width * LANES, y);
      if (is_last) finish(t, tile_rows, y);
      t += tile_rows;
    }
  }
}

}  // namespace turned
}  // namespace PF_ISA
}  // namespace pilotfish
