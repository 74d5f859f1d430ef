// The lines of a tile against one partition of keys: scores, weights, and the values they weigh.
//
// A line is one query head of one row. Keys are cut at positions that are multiples of SPAN; what one partition gives a
// line is its highest score, the sum of exp(score - highest), and the values summed with these weights.
//   score    scale * tree_sum of 16 lanes, lane l a chain of fused multiply-adds over columns l, l + 16, ...
//   sum      16 lanes, lane l a chain over keys l, l + 16, ... of the partition, joined by the tree
//   values   a lane is one column, a chain of fused multiply-adds over the keys in order
// Tiles, blocks and the two ways to the scores change none of it. A key that a line may not see never meets its sums.
#pragma once
#include <math.h>

#include "pilotfish/functions.h"
#include "pilotfish/lanes.h"
#include "pilotfish/rows.h"

namespace pilotfish {
namespace PF_ISA {
namespace attention {

constexpr int64_t SPAN = 128;
constexpr int64_t FEW_LINES = 8;  // so many read keys as they lie; more are worth turning them

// How many lines, keys and columns are worked on at once: as many as there are registers for.
#if defined(__AVX512F__)
constexpr int SCORE_LINES = 6, SCORE_GROUPS = 2, SCORE_LANES = 2, VALUE_LINES = 6, VALUE_COLUMNS = 4;
constexpr int FEW_KEYS[5] = {0, 16, 8, 4, 4};  // of one line, two, three, four
#else
constexpr int SCORE_LINES = 6, SCORE_GROUPS = 1, SCORE_LANES = 1, VALUE_LINES = 6, VALUE_COLUMNS = 1;
constexpr int FEW_KEYS[5] = {0, 4, 2, 2, 1};
#endif
constexpr int64_t VALUE_KEYS = 64;  // whose values, of one block of columns, stay in the first cache

// Keys of a partition, counted from its beginning; half open.
struct Range {
  int64_t begin, end;
};
static inline Range both(Range a, Range b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}
static inline Range either(Range a, Range b) {
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}
static inline bool is_empty(Range range) { return range.begin >= range.end; }

// What a tile holds in memory. Widths are rounded up to LANES; what is past them is zero.
struct Tile {
  int64_t lines, width, padded_width, value_width, padded_values;
  int64_t widened_stride;  // no power of two: rows that lie so far apart share few places in a cache
  float scale;
  float* q;          // [lines, padded_width]
  Range* seen;       // [lines], keys of this partition
  int64_t* places;   // [SPAN], where a key's row lies, in elements of the cache
  float* turned;     // [padded_width, SCORE_GROUPS * LANES], some groups of keys
  float* scores;     // [lines, SPAN], then weights
  float* widened;    // [SPAN, widened_stride]
  float* highest;    // [lines] of this partition; without a key seen, total is 0 and nothing else is set
  float* total;      // [lines]
  float* values;     // [lines, padded_values]
};

// --- Scores of sixteen keys.

// Few lines: 16 lanes of columns, keys read where they lie; places: of the 16 keys.
template <int DTYPE, int LINES>
static void score_few(const Tile& t, int64_t line, const typename Element<DTYPE>::Type* keys, const int64_t* places,
                      float* scores) {
  constexpr int KEYS = FEW_KEYS[LINES];
  const float* q = t.q + line * t.padded_width;
  const int64_t whole = t.width / LANES * LANES;
  Floats sums[LINES][LANES];
  for (int first = 0; first < LANES; first += KEYS) {
    Floats sum[LINES][KEYS];
    for (int i = 0; i < LINES; i++) for (int k = 0; k < KEYS; k++) sum[i][k] = zero();
    for (int64_t h = 0; h < whole; h += LANES) {
      for (int k = 0; k < KEYS; k++) {
        const Floats key = read<DTYPE>(keys + places[first + k] + h);
        for (int i = 0; i < LINES; i++) sum[i][k] = fma(load(q + i * t.padded_width + h), key, sum[i][k]);
      }
    }
    if (whole < t.width) {
      for (int k = 0; k < KEYS; k++) {
        const Floats key = read_some<DTYPE>(keys + places[first + k] + whole, t.width - whole);
        for (int i = 0; i < LINES; i++) sum[i][k] = fma(load(q + i * t.padded_width + whole), key, sum[i][k]);
      }
    }
    for (int i = 0; i < LINES; i++) for (int k = 0; k < KEYS; k++) sums[i][first + k] = sum[i][k];
  }
  for (int i = 0; i < LINES; i++) store(scores + i * SPAN, tree_sums(sums[i]) * all(t.scale));
}

// Turns keys, so that a lane is a key: turned[h] is column h of `count` groups of 16.
template <int DTYPE>
static void turn_keys(const Tile& t, const typename Element<DTYPE>::Type* keys, const int64_t* places, int64_t count) {
  const int64_t stride = count * LANES;
  for (int64_t group = 0; group < count; group++, places += LANES) {
    float* to = t.turned + group * LANES;
    int64_t h = 0;
    if constexpr (DTYPE == PF_BFLOAT16) {  // two columns in a lane
      for (; h + 2 * LANES <= t.width; h += 2 * LANES) {
        Floats part[LANES];
        for (int k = 0; k < LANES; k++) part[k] = bits_as_floats(load_ints(keys + places[k] + h));
        transpose(part);
        for (int k = 0; k < LANES; k++) {
          const Ints bits = bits_as_ints(part[k]);
          store(to + (h + 2 * k) * stride, bits_as_floats(shift_left<16>(bits)));
          store(to + (h + 2 * k + 1) * stride, bits_as_floats(bits & all_ints(-65536)));
        }
      }
    }
    for (; h < t.padded_width; h += LANES) {
      Floats part[LANES];
      for (int k = 0; k < LANES; k++) part[k] = read_some<DTYPE>(keys + places[k] + h, t.width - h);
      transpose(part);
      for (int k = 0; k < LANES; k++) store(to + (h + k) * stride, part[k]);
    }
  }
}

template <int COUNT>
PF_INLINE void add_all(Floats* sums, const Floats* added) {
  for (int i = 0; i < COUNT; i++) sums[i] = added[i] + sums[i];
}

// Many lines, turned keys: SCORE_LANES of the 16 lanes of the sums at a time, in LANE_ORDER, joined as soon as the tree
// allows. How far lanes are from the first of theirs is how far the first SCORE_LANES are from lane 0.
template <int LINES>
static void score_many(const Tile& t, int64_t line, float* scores) {
  constexpr int STRIDE = SCORE_GROUPS * LANES;
  constexpr int SUMS = LINES * SCORE_GROUPS;
  Floats waiting[5][SUMS];  // sums of SCORE_LANES lanes, twice as many, and so on
  for (int n = 0; n < LANES / SCORE_LANES; n++) {
    const float* q = t.q + line * t.padded_width + LANE_ORDER[n * SCORE_LANES];
    const float* turned = t.turned + LANE_ORDER[n * SCORE_LANES] * STRIDE;
    Floats sum[SCORE_LANES][SUMS];
    for (int l = 0; l < SCORE_LANES; l++) for (int i = 0; i < SUMS; i++) sum[l][i] = zero();
    for (int64_t h = 0; h < t.padded_width; h += LANES) {
      for (int l = 0; l < SCORE_LANES; l++) {
        Floats keys[SCORE_GROUPS];
        for (int g = 0; g < SCORE_GROUPS; g++) keys[g] = load(turned + (h + LANE_ORDER[l]) * STRIDE + g * LANES);
        for (int i = 0; i < LINES; i++) {
          const Floats one = all(q[i * t.padded_width + h + LANE_ORDER[l]]);
          for (int g = 0; g < SCORE_GROUPS; g++) {
            Floats& to = sum[l][i * SCORE_GROUPS + g];
            to = fma(one, keys[g], to);
          }
        }
      }
    }
    for (int step = 1; step < SCORE_LANES; step *= 2) {
      for (int l = 0; l < SCORE_LANES; l += 2 * step) add_all<SUMS>(sum[l], sum[l + step]);
    }
    int level = 0;
    for (; n >> level & 1; level++) add_all<SUMS>(sum[0], waiting[level]);
    for (int i = 0; i < SUMS; i++) waiting[level][i] = sum[0][i];
  }
  static_assert(SCORE_LANES == 1 || SCORE_LANES == 2);
  constexpr int LAST = SCORE_LANES == 2 ? 3 : 4;
  for (int i = 0; i < SUMS; i++) {
    store(scores + i / SCORE_GROUPS * SPAN + i % SCORE_GROUPS * LANES, waiting[LAST][i] * all(t.scale));
  }
}

// keys: all lines against the 16 at t.places + group; null: against the SCORE_GROUPS * 16 that were turned.
template <int LINES, int DTYPE>
static void score_lines(const Tile& t, int64_t line, const typename Element<DTYPE>::Type* keys, int64_t group) {
  if constexpr (LINES > 0) {
    for (; line + LINES <= t.lines; line += LINES) {
      Range seen = t.seen[line];
      for (int i = 1; i < LINES; i++) seen = either(seen, t.seen[line + i]);
      if (is_empty(both(seen, {group, group + (keys ? LANES : SCORE_GROUPS * LANES)}))) continue;
      float* scores = t.scores + line * SPAN + group;
      if (!keys) score_many<LINES>(t, line, scores);
      else if constexpr (LINES <= 4) score_few<DTYPE, LINES>(t, line, keys, t.places + group, scores);
    }
    score_lines<LINES - 1, DTYPE>(t, line, keys, group);
  }
}

// --- Weights.

PF_INLINE Mask in_range(int64_t group, Range seen) {
  const Ints key = lane_numbers() + all_ints((int32_t)group);
  return less(all_ints((int32_t)seen.begin - 1), key) & less(key, all_ints((int32_t)seen.end));
}

// Scores of a line become exp(score - highest).
static void weigh(const Tile& t, int64_t line) {
  const Range seen = t.seen[line];
  float* scores = t.scores + line * SPAN;
  const int64_t first = seen.begin / LANES * LANES;
  const Floats nothing = all(-INFINITY);
  Floats highest = nothing;
  for (int64_t j = first; j < seen.end; j += LANES) {
    Floats score = load(scores + j);
    if (j < seen.begin || j + LANES > seen.end) score = select(in_range(j, seen), score, nothing);
    highest = larger(score, highest);
  }
  t.highest[line] = tree_larger(highest);
  highest = all(t.highest[line]);
  Floats total = zero();
  for (int64_t j = first; j < seen.end; j += LANES) {
    Floats weight = exp(load(scores + j) - highest);
    if (j < seen.begin || j + LANES > seen.end) weight = select(in_range(j, seen), weight, zero());
    store(scores + j, weight);
    total = total + weight;
  }
  t.total[line] = tree_sum(total);
}

// --- Values.

// Adds weight * value of the keys of a range, to COLUMNS * LANES columns of LINES lines.
template <int DTYPE, int LINES, int COLUMNS>
PF_INLINE void add_values_block(const float* weights, const typename Element<DTYPE>::Type* values,
                                const int64_t* places, Range range, float* sums, int64_t sums_stride) {
  Floats sum[LINES][COLUMNS];
  for (int i = 0; i < LINES; i++) {
    for (int c = 0; c < COLUMNS; c++) sum[i][c] = load(sums + i * sums_stride + c * LANES);
  }
  for (int64_t j = range.begin; j < range.end; j++) {
    Floats value[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) value[c] = read<DTYPE>(values + places[j] + c * LANES);
    for (int i = 0; i < LINES; i++) {
      const Floats weight = all(weights[i * SPAN + j]);
      for (int c = 0; c < COLUMNS; c++) sum[i][c] = fma(weight, value[c], sum[i][c]);
    }
  }
  for (int i = 0; i < LINES; i++) {
    for (int c = 0; c < COLUMNS; c++) store(sums + i * sums_stride + c * LANES, sum[i][c]);
  }
}

// Of the columns from c on, at most VALUE_COLUMNS * LANES.
template <int DTYPE, int LINES>
static void add_values(const Tile& t, int64_t line, int64_t c, const typename Element<DTYPE>::Type* values,
                       const int64_t* places, Range range) {
  if (is_empty(range)) return;
  const float* weights = t.scores + line * SPAN;
  float* sums = t.values + line * t.padded_values;
  if (c + VALUE_COLUMNS * LANES <= t.padded_values) {
    add_values_block<DTYPE, LINES, VALUE_COLUMNS>(weights, values + c, places, range, sums + c, t.padded_values);
    return;
  }
  for (; c < t.padded_values; c += LANES) {
    add_values_block<DTYPE, LINES, 1>(weights, values + c, places, range, sums + c, t.padded_values);
  }
}

// LINES lines and the keys of `part`: what all see together, and before and after it what each sees alone.
template <int DTYPE, int LINES>
static void sum_values(const Tile& t, int64_t line, int64_t c, const typename Element<DTYPE>::Type* values,
                       const int64_t* places, Range part) {
  if constexpr (LINES > 0) {
    for (; line + LINES <= t.lines; line += LINES) {
      Range seen[LINES], common = part;
      for (int i = 0; i < LINES; i++) {
        seen[i] = both(t.seen[line + i], part);
        common = both(common, seen[i]);
      }
      const bool is_common = !is_empty(common);
      for (int i = 0; i < LINES; i++) {
        const Range before = is_common ? Range{seen[i].begin, common.begin} : seen[i];
        add_values<DTYPE, 1>(t, line + i, c, values, places, before);
      }
      if (!is_common) continue;
      add_values<DTYPE, LINES>(t, line, c, values, places, common);
      for (int i = 0; i < LINES; i++) {
        add_values<DTYPE, 1>(t, line + i, c, values, places, {common.end, seen[i].end});
      }
    }
    sum_values<DTYPE, LINES - 1>(t, line, c, values, places, part);
  }
}

// Copies the values that are wanted, widened, with zeros past them.
template <int DTYPE>
static void widen_values(const Tile& t, const typename Element<DTYPE>::Type* values, Range range) {
  for (int64_t j = range.begin; j < range.end; j++) {
    for (int64_t c = 0; c < t.padded_values; c += LANES) {
      store(t.widened + j * t.widened_stride + c, read_some<DTYPE>(values + t.places[j] + c, t.value_width - c));
    }
  }
}

// All lines, in parts that the first cache holds.
template <int DTYPE>
static void sum_all_values(const Tile& t, const typename Element<DTYPE>::Type* values, const int64_t* places,
                           Range seen) {
  for (int64_t c = 0; c < t.padded_values; c += VALUE_COLUMNS * LANES) {
    for (int64_t j = seen.begin; j < seen.end; j += VALUE_KEYS) {
      sum_values<DTYPE, VALUE_LINES>(t, 0, c, values, places, both({j, j + VALUE_KEYS}, seen));
    }
  }
}

// --- A partition.

// keys, values: of the kv head in slot 0; t.places are set for the groups of keys that `seen` touches.
template <int DTYPE>
static void attend_partition(const Tile& t, const typename Element<DTYPE>::Type* keys,
                             const typename Element<DTYPE>::Type* values, Range seen) {
  if (t.lines <= FEW_LINES) {
    for (int64_t group = seen.begin / LANES * LANES; group < seen.end; group += LANES) {
      score_lines<4, DTYPE>(t, 0, keys, group);
    }
  } else {
    constexpr int64_t KEYS = SCORE_GROUPS * LANES;
    for (int64_t group = seen.begin / KEYS * KEYS; group < seen.end; group += KEYS) {
      turn_keys<DTYPE>(t, keys, t.places + group, SCORE_GROUPS);
      score_lines<SCORE_LINES, DTYPE>(t, 0, nullptr, group);
    }
  }
  for (int64_t i = 0; i < t.lines; i++) {
    if (is_empty(t.seen[i])) t.total[i] = 0.0f;
    else weigh(t, i);
  }
  memset(t.values, 0, sizeof(float) * (size_t)(t.lines * t.padded_values));
  // Few lines read values as they lie. Many, or where a row ends inside of the lanes, read a copy.
  if (t.lines <= VALUE_LINES && t.value_width % LANES == 0) {
    sum_all_values<DTYPE>(t, values, t.places, seen);
    return;
  }
  widen_values<DTYPE>(t, values, seen);
  int64_t places[SPAN];
  for (int64_t j = 0; j < SPAN; j++) places[j] = j * t.widened_stride;
  sum_all_values<PF_FLOAT32>(t, t.widened, places, seen);
}

}  // namespace attention
}  // namespace PF_ISA
}  // namespace pilotfish
