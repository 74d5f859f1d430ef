// Products of rows with some outputs of a weight: the order of sums, and the tiles that keep registers and caches full.
//
// Knows: rows of float32, decoded weights. Does not know: who shares the work, or where results go.
// The order: lane l of step s holds column 16 s + l; a chain of fused multiply-adds runs over the steps of a chunk of
// 512 columns; `tree_sum` joins its lanes; chunks are added in order. It depends on nothing but the width.
// Letters: T rows, K input width, O outputs.
#pragma once
#include "linear/blocks.h"
#include "pilotfish/simd.h"

namespace pilotfish {
namespace PF_ISA {

// Outputs that a panel holds, and that a tile multiplies at once; rows that a tile has at most.
constexpr int64_t PANEL = 16;
constexpr int64_t GROUP = 4;
#if defined(__AVX512F__)
constexpr int64_t TILE_ROWS = 6;
#else
constexpr int64_t TILE_ROWS = 3;
#endif

// Rows widened to float32 with zeros up to a multiple of 16 columns, chunk after chunk: of chunk c, row t begins at
// values + c * CHUNK * rows + t * width, where width is 512 but for the last chunk.
struct WideRows {
  const float* values;
  int64_t rows, columns;
  PF_INLINE int64_t padded(int64_t columns) { return rounded_up(columns, LANES); }
  PF_INLINE int64_t bytes(int64_t rows, int64_t columns) { return rows * padded(columns) * (int64_t)sizeof(float); }
  const float* row(int64_t t, int64_t column) const {
    int64_t left = padded(columns) - column;
    return values + column * rows + t * (left < CHUNK ? left : CHUNK);
  }
};

// Rows first to end of x, [rows, columns] of a dtype, into their places in `out`.
template <int DTYPE>
static void widen_rows(const void* x, int64_t stride, int64_t first, int64_t end, float* out, int64_t rows,
                       int64_t columns) {
  using Type = typename Element<DTYPE>::Type;
  const WideRows wide = {out, rows, columns};
  for (int64_t column = 0; column < columns; column += CHUNK) {
    int64_t left = columns - column, width = left < CHUNK ? left : CHUNK;
    for (int64_t t = first; t < end; t++) {
      const Type* from = (const Type*)x + t * stride + column;
      float* to = (float*)wide.row(t, column);
      for (int64_t k = 0; k < width; k += LANES) store(to + k, read_some<DTYPE>(from + k, width - k));
    }
  }
}

// y[i] += tree_sum(x[i]) of four: the same pairs are added, four trees at a time.
PF_INLINE void add_sums(const Floats* x, float* y) {
#if defined(__AVX512F__)
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(x[0].v, x[1].v, 0x44), _mm512_shuffle_f32x4(x[0].v, x[1].v, 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(x[2].v, x[3].v, 0x44), _mm512_shuffle_f32x4(x[2].v, x[3].v, 0xee));
  __m512 quarter = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  __m512 two = _mm512_add_ps(quarter, _mm512_permute_ps(quarter, 0x0e));
  __m512 one = _mm512_add_ps(two, _mm512_permute_ps(two, 0x01));
  const __m512i firsts = _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, one))));
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
  __m128 four = _mm_unpacklo_ps(_mm256_castps256_ps128(one), _mm256_extractf128_ps(one, 1));
  _mm_storeu_ps(y, _mm_add_ps(_mm_loadu_ps(y), four));
#else
  for (int i = 0; i < 4; i++) y[i] += tree_sum(x[i]);
#endif
}

// R rows times OUTPUTS outputs: sums of one chunk, added to y (rows PANEL apart). w: rows CHUNK apart.
template <int R, int OUTPUTS>
static void tile_of(const float* const* x, const float* w, int64_t width, float* y) {
  Floats sums[R][OUTPUTS];
  for (int r = 0; r < R; r++) {
    for (int o = 0; o < OUTPUTS; o++) sums[r][o] = zero();
  }
  for (int64_t k = 0; k < width; k += LANES) {
    if constexpr (R < OUTPUTS) {  // registers hold the fewer of the two, the others come one by one
      Floats row[R];
      for (int r = 0; r < R; r++) row[r] = load(x[r] + k);
      for (int o = 0; o < OUTPUTS; o++) {
        Floats weight = load(w + o * CHUNK + k);
        for (int r = 0; r < R; r++) sums[r][o] = fma(weight, row[r], sums[r][o]);
      }
    } else {
      Floats weight[OUTPUTS];
      for (int o = 0; o < OUTPUTS; o++) weight[o] = load(w + o * CHUNK + k);
      for (int r = 0; r < R; r++) {
        Floats row = load(x[r] + k);
        for (int o = 0; o < OUTPUTS; o++) sums[r][o] = fma(weight[o], row, sums[r][o]);
      }
    }
  }
  for (int r = 0; r < R; r++) {
    if constexpr (OUTPUTS == 2) {
      y[r * PANEL] += tree_sum(sums[r][0]);
      y[r * PANEL + 1] += tree_sum(sums[r][1]);
    } else {
      for (int o = 0; o < OUTPUTS; o += 4) add_sums(sums[r] + o, y + r * PANEL + o);
    }
  }
}

template <int R, int OUTPUTS>
static void tiles_of(const float* const* x, const float* w, int64_t width, int64_t outputs, float* y) {
  int64_t o = 0;
  for (; o + OUTPUTS <= outputs; o += OUTPUTS) tile_of<R, OUTPUTS>(x, w + o * CHUNK, width, y + o);
  if constexpr (OUTPUTS > GROUP) {
    for (; o < outputs; o += GROUP) tile_of<R, GROUP>(x, w + o * CHUNK, width, y + o);
  }
}

// Any rows up to TILE_ROWS times outputs, a multiple of GROUP. As many sums at once as there are registers for.
static void multiply_tiles(int64_t rows, const float* const* x, const float* w, int64_t width, int64_t outputs,
                           float* y) {
  switch (rows) {
#if defined(__AVX512F__)
    case 1: return tiles_of<1, 8>(x, w, width, outputs, y);
    case 2: return tiles_of<2, 8>(x, w, width, outputs, y);
    case 3: return tiles_of<3, 8>(x, w, width, outputs, y);
    case 4: return tiles_of<4, 4>(x, w, width, outputs, y);
    case 5: return tiles_of<5, 4>(x, w, width, outputs, y);
    default: return tiles_of<6, 4>(x, w, width, outputs, y);
#else
    case 1: return tiles_of<1, 4>(x, w, width, outputs, y);
    case 2: return tiles_of<2, 2>(x, w, width, outputs, y);
    default: return tiles_of<3, 2>(x, w, width, outputs, y);
#endif
  }
}

// One row times four outputs, multiplied as they are decoded: sums of one chunk, added to y[0] to y[3].
typedef void (*Dot)(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                    const float* x, float* y);

template <typename Reader>
static void dot_rows(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                     const float* x, float* y) {
  Floats sums[GROUP] = {zero(), zero(), zero(), zero()};
  Reader::template read<GROUP>(part, rows, column, columns,
                               [&](int o, int64_t k, Floats numbers) __attribute__((always_inline)) {
                                 sums[o] = fma(numbers, load(x + k), sums[o]);
                               });
  add_sums(sums, y);
}
static Dot dot_of(int64_t kind) {
  Dot found = nullptr;
  with_reader(kind, [&](auto reader) { found = dot_rows<decltype(reader)>; });
  return found;
}

// `multiply_panel` for one row.
static void multiply_one_row(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x, int64_t row,
                             float* y) {
  const Dot dot = dot_of(part->kind);
  memset(y, 0, sizeof(float) * PANEL);
  for (int64_t begin = 0; begin < count; begin += GROUP) {
    const uint8_t* outputs[GROUP];
    for (int64_t o = 0; o < GROUP; o++) {  // the last again, where fewer than four are left
      const int64_t output = first + (begin + o < count ? begin + o : count - 1);
      outputs[o] = (const uint8_t*)part->data + output * part->row_bytes;
    }
    for (int64_t column = 0; column < x.columns; column += CHUNK) {
      const int64_t left = x.columns - column;
      dot(part, outputs, column, left < CHUNK ? left : CHUNK, x.row(row, column), y + begin);
    }
  }
}

// Products of some rows with outputs first to first + count (at most PANEL) of a part.
// order: [rows] int64, which rows of x, or null for `first_row` and those after it. y: [rows, PANEL], to work in.
// finish(t, n, sums): takes the sums of rows t to t + n, [n, PANEL], as soon as they are whole.
template <typename Finish>
static void multiply_panel(const pf_weight_part* part, int64_t first, int64_t count, const WideRows& x,
                           const int64_t* order, int64_t first_row, int64_t rows, float* y, Finish finish) {
  if (rows == 1) {
    multiply_one_row(part, first, count, x, order ? order[0] : first_row, y);
    return finish(0, 1, y);
  }
  alignas(64) float panel[PANEL * CHUNK];
  const Decode decode = decoder_of(part->kind);
  const int64_t padded = WideRows::padded(x.columns);
  // Few rows: eight outputs are used as soon as they are decoded. Many: the whole panel stays in the first cache.
  const int64_t at_once = rows <= 2 * TILE_ROWS ? 2 * GROUP : PANEL;
  memset(y, 0, sizeof(float) * (size_t)(rows * PANEL));
  for (int64_t column = 0; column < padded; column += CHUNK) {
    const int64_t left = x.columns - column, columns = left < CHUNK ? left : CHUNK;
    const int64_t width = WideRows::padded(columns);
    for (int64_t begin = 0; begin < count; begin += at_once) {
      const int64_t end = begin + at_once < count ? begin + at_once : count;
      for (int64_t o = begin; o < rounded_up(end, GROUP); o++) {  // the last again, where fewer than four are left
        const int64_t output = first + (o < count ? o : count - 1);
        const uint8_t* row = (const uint8_t*)part->data + output * part->row_bytes;
        decode(part, row, column, columns, panel + (o - begin) * CHUNK);
      }
      const bool is_last = column + CHUNK >= padded && end == count;
      for (int64_t t = 0; t < rows;) {
        const int64_t tiles = (rows - t + TILE_ROWS - 1) / TILE_ROWS, tile_rows = (rows - t + tiles - 1) / tiles;
        const float* row[TILE_ROWS];
        for (int64_t r = 0; r < tile_rows; r++) row[r] = x.row(order ? order[t + r] : first_row + t + r, column);
        multiply_tiles(tile_rows, row, panel, width, rounded_up(end - begin, GROUP), y + t * PANEL + begin);
        if (is_last) finish(t, tile_rows, y + t * PANEL);
        t += tile_rows;
      }
    }
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
