// A row's likeliest tokens, found without sorting it: a scan, lists of tokens, and where their order is cut.
// Tokens are ordered by value, the highest first, and by id among equals; a list has its ids ascending.
#pragma once
#include "pilotfish/op.h"
#include "sampling/lanes.h"

namespace pilotfish {
namespace PF_ISA {
namespace sampling {

// --- A row's largest logit, and the largest of each lane of each group, by which later passes leave groups out.

struct Peak {
  float value;  // NaN where the row holds one
  int64_t id;   // the lowest that has it
};
PF_INLINE int64_t num_groups(int64_t count) { return (count + GROUP - 1) / GROUP; }

// maxima: [num_groups, LANES], written.
static Peak scan(const float* x, int64_t count, float* maxima) {
  Floats best = all(-INFINITY);
  Ints group_of_best = all_ints(0);
  Mask nan = is_nan(zero());
  for (int64_t g = 0; g < num_groups(count); g++) {
    Floats group = all(-INFINITY);
    for (int s = 0; s < 8; s++) {
      const int64_t i = g * GROUP + s * LANES;
      if (i >= count) break;
      Floats part = load_logits(x + i, count - i);
      nan = nan | is_nan(part);
      group = larger(part, group);
    }
    store(maxima + g * LANES, group);
    Mask better = less(best, group);
    best = select(better, group, best);
    group_of_best = select(better, all_ints((int32_t)g), group_of_best);
  }
  if (lanes_of(nan)) return {NAN, 0};
  float values[LANES];
  int32_t groups[LANES];
  store(values, best);
  store_ints(groups, group_of_best);
  Peak peak = {-INFINITY, 0};
  int64_t group = 0;
  for (int l = 0; l < LANES; l++) {
    if (values[l] > peak.value) peak.value = values[l], group = groups[l];
    else if (values[l] == peak.value && groups[l] < group) group = groups[l];
  }
  for (peak.id = group * GROUP; x[peak.id] != peak.value; peak.id++) {
  }
  return peak;
}

// --- Lists of tokens, ids ascending.

struct Work {  // a thread's memory, for one vocabulary
  float* edited;
  float* values;   // of the list
  uint32_t* ids;   // of the list
  uint32_t* keys;  // for `find_cut`
  int64_t* masses;
  uint32_t* spare_keys;  // for `sort_list`
  float* maxima;         // of the row's groups, then of theirs
};

// A list may be written up to a register past its end.
static Work work_for(int64_t vocab, pf_team* team) {
  const int64_t room = (vocab + 2 * LANES + GROUP) / GROUP * GROUP + GROUP;
  const int64_t room_maxima = room / 4 + 4096;
  char* memory = (char*)team->scratch(team, 0, room * (4 * 5 + 8) + room_maxima * 4);
  Work w;
  w.masses = (int64_t*)memory;
  w.edited = (float*)(w.masses + room);
  w.values = w.edited + room;
  w.ids = (uint32_t*)(w.values + room);
  w.keys = w.ids + room;
  w.spare_keys = w.keys + room;
  w.maxima = (float*)(w.spare_keys + room);
  return w;
}

// The first n of 16 lanes.
PF_INLINE uint32_t first_lanes(int64_t n) { return n < LANES ? (1u << n) - 1 : 0xffff; }

// Appends tokens of some lanes to a list of `count`; returns its new length. It may be the list that they come from.
PF_INLINE int64_t append(const Work* w, int64_t count, uint32_t lanes, Floats values, Ints ids) {
#if defined(__AVX512F__)
  _mm512_storeu_ps(w->values + count, _mm512_maskz_compress_ps((__mmask16)lanes, values.v));
  _mm512_storeu_si512(w->ids + count, _mm512_maskz_compress_epi32((__mmask16)lanes, ids.v));
  return count + __builtin_popcount(lanes);
#else
  float all_values[LANES];
  uint32_t all_ids[LANES];
  store(all_values, values);
  store_ints(all_ids, ids);
  for (; lanes; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    w->values[count] = all_values[l];
    w->ids[count++] = all_ids[l];
  }
  return count;
#endif
}

// Writes ids and values of what is `least` or more to the list; returns how many. maxima: as `scan` wrote them.
static int64_t gather(const float* x, int64_t count, const float* maxima, float least, const Work* w) {
  const Floats bound = all(least);
  int64_t found = 0;
  for (int64_t g = 0; g < num_groups(count); g++) {
    if (!lanes_at_least(load(maxima + g * LANES), bound)) continue;
    for (int64_t i = g * GROUP; i < (g + 1) * GROUP && i < count; i += LANES) {
      Floats part = load_logits(x + i, count - i);
      const uint32_t lanes = lanes_at_least(part, bound) & first_lanes(count - i);
      if (lanes) found = append(w, found, lanes, part, lane_numbers() + all_ints((int32_t)i));
    }
  }
  return found;
}

// Order of tokens: the higher a value, the lower its key; 0 and -0 are one value.
PF_INLINE uint32_t key_of(float value) {
  const float one_zero = value + 0.0f;
  uint32_t bits;
  memcpy(&bits, &one_zero, 4);
  return bits ^ (bits >> 31 ? 0u : 0x7fffffffu);
}
PF_INLINE float value_of(uint32_t key) {
  const uint32_t bits = key ^ (key >> 31 ? 0u : 0x7fffffffu);
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
static void write_keys(const float* values, int64_t count, uint32_t* keys) {
  for (int64_t i = 0; i < count; i++) keys[i] = key_of(values[i]);
}

// The prefix of the order that stays: all tokens above `value`, and the first `ties` of those that have it.
struct Cut {
  float value;
  int64_t ties;
};

// Keeps a token while those before it weigh less than `wanted`, which is above 0. masses: [count]; null: each weighs 1.
// Looks at 11 bits of the keys at a time, and on at the tokens of one bucket only. Overwrites keys and masses.
static Cut find_cut(uint32_t* keys, int64_t* masses, int64_t count, double wanted) {
  constexpr int BUCKETS = 2048;
  int64_t weights[BUCKETS], before = 0;
  int32_t numbers[BUCKETS];
  for (int shift = 21; count > 1; shift = shift > 10 ? shift - 11 : 0) {
    memset(weights, 0, sizeof(weights));
    memset(numbers, 0, sizeof(numbers));
    for (int64_t i = 0; i < count; i++) {
      const uint32_t bucket = keys[i] >> shift & (BUCKETS - 1);
      weights[bucket] += masses ? masses[i] : 1;
      numbers[bucket]++;
    }
    uint32_t last = 0;
    int64_t through = before, before_last = before;
    for (uint32_t bucket = 0; bucket < BUCKETS && (double)through < wanted; bucket++) {
      if (!numbers[bucket]) continue;
      last = bucket;
      before_last = through;
      through += weights[bucket];
    }
    before = before_last;
    int64_t stay = 0;
    for (int64_t i = 0; i < count; i++) {
      const bool stays = (keys[i] >> shift & (BUCKETS - 1)) == last;
      keys[stay] = keys[i];
      if (masses) masses[stay] = masses[i];
      stay += stays;
    }
    count = stay;
    if (shift == 0) break;
  }
  const int64_t each = masses ? masses[0] : 1;
  int64_t ties = 1;  // equal logits weigh the same
  while (ties < count && (double)(before + ties * each) < wanted) ties++;
  return {value_of(keys[0]), ties};
}

// Keeps what stays of the list; returns how many.
static int64_t keep(const Work* w, int64_t count, Cut cut) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    const Floats values = load(w->values + i);
    uint32_t lanes = lanes_at_least(values, all(cut.value)) & first_lanes(count - i);
    const uint32_t above = lanes_of(less(all(cut.value), values)) & lanes;
    for (uint32_t tied = lanes & ~above; tied; tied &= tied - 1) {
      if (cut.ties-- <= 0) lanes &= ~(tied & -tied);
    }
    found = append(w, found, lanes, values, load_ints(w->ids + i));
  }
  return found;
}

// The k-th largest of the maxima of groups: no more than the k-th largest of what they are maxima of.
static float kth_maximum(const float* maxima, int64_t count, int64_t k, const Work* w) {
  int64_t few = count;
  const float* values = maxima;
  if (count > 1024 && 16 * k <= count) {
    float* next = (float*)maxima + count;
    scan(maxima, count, next);
    few = gather(maxima, count, next, kth_maximum(next, num_groups(count) * LANES, k, w), w);
    values = w->values;
  }
  write_keys(values, few, w->keys);
  return find_cut(w->keys, nullptr, few, (double)k).value;
}

}  // namespace sampling
}  // namespace PF_ISA
}  // namespace pilotfish
