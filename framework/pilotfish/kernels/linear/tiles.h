// Products of rows with some outputs of a weight: the order of sums, and the tiles that keep registers and caches full.
//
// Knows: rows of float32, decoded weights. Does not know: who shares the work, or where results go.
// The order: lane l of step s holds column 16 s + l; a chain of fused multiply-adds runs over the steps of a span of
// 4096 columns; the lanes of spans are added in order; `tree_sum` joins them. It depends on nothing but the width.
// Letters: T rows, K input width, O outputs.
#pragma once
#include "linear/blocks.h"
#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

// Columns of one chain of sums.
constexpr int64_t SPAN = 4096;
// Columns of decoded outputs that the first cache holds beside rows.
constexpr int64_t PIECE = 1024;
// Outputs whose results are written at once, and outputs that one row is multiplied with as they are decoded.
constexpr int64_t PANEL = 16, GROUP = 4;
// A tile: as many sums as there are registers for.
constexpr int64_t TILE_ROWS = 3;
#if defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t TILE_OUTPUTS = 4;
#else
constexpr int64_t TILE_OUTPUTS = 8;
#endif

// Rows widened to float32 with zeros up to a multiple of 16 columns, piece after piece: of piece c, row t begins at
// values + c * PIECE * rows + t * width, where width is PIECE but for the last.
struct WideRows {
  const float* values;
  int64_t rows, columns;
  PF_INLINE int64_t padded(int64_t columns) { return rounded_up(columns, LANES); }
  PF_INLINE int64_t bytes(int64_t rows, int64_t columns) { return rows * padded(columns) * (int64_t)sizeof(float); }
  const float* row(int64_t t, int64_t column) const {
    const int64_t into = column % PIECE, begin = column - into, left = padded(columns) - begin;
    return values + begin * rows + t * (left < PIECE ? left : PIECE) + into;
  }
};

// Rows first to end of x, [rows, columns] of a dtype, into their places in `out`.
template <int DTYPE>
static void widen_rows(const void* x, int64_t stride, int64_t first, int64_t end, float* out, int64_t rows,
                       int64_t columns) {
  using Type = typename Element<DTYPE>::Type;
  const WideRows wide = {out, rows, columns};
  for (int64_t column = 0; column < columns; column += PIECE) {
    int64_t left = columns - column, width = left < PIECE ? left : PIECE;
    for (int64_t t = first; t < end; t++) {
      const Type* from = (const Type*)x + t * stride + column;
      float* to = (float*)wide.row(t, column);
      for (int64_t k = 0; k < width; k += LANES) store(to + k, read_some<DTYPE>(from + k, width - k));
    }
  }
}

// y[i] = tree_sum(x[i]) of four: the same pairs are added, four trees at a time.
PF_INLINE void tree_sums(const Floats* x, float* y) {
#if defined(__AVX512F__)
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(x[0].v, x[1].v, 0x44), _mm512_shuffle_f32x4(x[0].v, x[1].v, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(x[2].v, x[3].v, 0x44), _mm512_shuffle_f32x4(x[2].v, x[3].v, 0xee));
  __m512 quarter = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  __m512 two = _mm512_add_ps(quarter, _mm512_permute_ps(quarter, 0x0e));
  __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0x01));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(y, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one)));
#elif defined(__AVX2__)
  __m256 half[4];
  for (int i = 0; i < 4; i++) half[i] = _mm256_add_ps(x[i].a, x[i].b);
  __m256 quarters[2];
  for (int i = 0; i < 2; i++) {
    const __m256 a = half[2 * i], b = half[2 * i + 1];
    quarters[i] = _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  const __m256 ab = quarters[0], cd = quarters[1];
  __m256 two = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));  // a a c c, b b d d
  __m256 one = _mm256_add_ps(_mm256_permute_ps(two, 0x08), _mm256_permute_ps(two, 0x0d));        // a c, b d
  _mm_storeu_ps(y, _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1)));
#else
  for (int i = 0; i < 4; i++) y[i] = tree_sum(x[i]);
#endif
}

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
    if (is_last) tree_sums(sums, y + o);
  }
}

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
        for (int r = 0; r < R; r++) row[r] = x.row(rows[r], column);
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
  for (int r = 0; r < R; r++) tree_sums(spans[r], y + r * PANEL);
}

struct Few {
  int64_t rows;
  Dot dot;
};
// A dot for `rows` rows, or the next more.
template <typename Reader> static Few few_of(int64_t rows) {
  if (rows <= 1) return {1, dot_rows<Reader, 1, 4>};
#if defined(__AVX512F__)
  if (rows <= 2) return {2, dot_rows<Reader, 2, 4>};
  if (rows <= 3) return {3, dot_rows<Reader, 3, 4>};
  if (rows <= 4) return {4, dot_rows<Reader, 4, 4>};
  if (rows <= 6) return {6, dot_rows<Reader, 6, 2>};
  return {8, dot_rows<Reader, 8, 2>};
#else
  if (rows <= 2) return {2, dot_rows<Reader, 2, 2>};
  if (rows <= 4) return {4, dot_rows<Reader, 4, 1>};
  return {6, dot_rows<Reader, 6, 1>};
#endif
}
#if defined(__AVX512F__)
constexpr int64_t STRAIGHT_ROWS = 8;
#else
constexpr int64_t STRAIGHT_ROWS = 6;
#endif

// `multiply_panel` for few rows. rows: of x, [count of few]; y: [count of few, PANEL].
static void multiply_few(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x,
                         const int64_t* order, int64_t first_row, int64_t num_rows, float* y) {
  Few few = {};
  with_reader(part->kind, [&](auto reader) { few = few_of<decltype(reader)>(num_rows); });
  int64_t rows[STRAIGHT_ROWS];
  for (int64_t t = 0; t < few.rows; t++) {  // the last again, where there are fewer
    const int64_t at = t < num_rows ? t : num_rows - 1;
    rows[t] = order ? order[at] : first_row + at;
  }
  for (int64_t begin = 0; begin < count; begin += GROUP) {
    const uint8_t* outputs[GROUP];
    for (int64_t o = 0; o < GROUP; o++) {  // the last again, where fewer than four are left
      const int64_t output = first + (begin + o < count ? begin + o : count - 1);
      outputs[o] = (const uint8_t*)part->data + output * part->row_bytes;
    }
    few.dot(part, outputs, x, rows, y + begin);
  }
}

// Floats that `multiply_panel` works in.
static int64_t floats_of_panel(int64_t rows, int64_t columns) {
  return (rows < STRAIGHT_ROWS ? STRAIGHT_ROWS : rows) * PANEL + Sums::floats(rows, columns);
}

// Products of some rows with outputs first to first + count (at most PANEL) of a part.
// order: [rows] int64, which rows of x, or null for `first_row` and those after it. work: [floats_of_panel].
// finish(t, n, y): takes the sums of rows t to t + n, [n, PANEL], as soon as they are whole.
template <typename Finish>
static void multiply_panel(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x,
                           const int64_t* order, int64_t first_row, int64_t rows, float* work, Finish finish) {
  float* y = work;
  if (rows <= STRAIGHT_ROWS) {
    multiply_few(part, first, count, x, order, first_row, rows, y);
    return finish(0, rows, y);
  }
  alignas(64) float panel[TILE_OUTPUTS * PIECE];
  const Decode decode = decoder_of(part->kind);
  const int64_t padded = WideRows::padded(x.columns);
  const bool is_one_piece = padded <= PIECE;
  float *chains = y + rows * PANEL, *spans = chains + rows * PANEL * LANES;
  for (int64_t column = 0; column < padded; column += PIECE) {
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
        for (int64_t r = 0; r < tile_rows; r++) row[r] = x.row(order ? order[t + r] : first_row + t + r, column);
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
