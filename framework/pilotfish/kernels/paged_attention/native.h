// Attention of a ragged pass over paged keys and values.
//
// A unit is a run of lines (query heads of rows) of one request and kv head. Its keys are cut in partitions at fixed
// positions; what they give is merged in order, so neither the tiles nor who computes a partition can change a bit.
#pragma once
#include "paged_attention/native_partition.h"

extern "C" {
// What all layers of a pass share. Row i of request b stands at position lengths[b] + i.
typedef struct pf_attention_pass {
  const int32_t* pages;        // [B, page_stride], ids in order
  const int32_t* lengths;      // [B], rows committed before the pass
  const int32_t* row_offsets;  // [B + 1], where each request's rows begin
  int64_t requests, page_stride, page_size;
} pf_attention_pass;

// q: [T, N, H] of `q_dtype`, H contiguous, strides in elements. out: [T, N, value_width] of it, contiguous.
// cache: slots of `slot_stride` elements of `cache_dtype`; kv head k has its key at k * H of a slot, and its value
// `value_offset` elements after its key: 0 where the key is the value too.
// window: keys a row sees on a side, itself included; 0: all. is_block: rows see later keys too.
typedef struct pf_paged_attention {
  const pf_attention_pass* pass;
  const void* q;
  const void* cache;
  void* out;
  int64_t heads, kv_heads, width, value_width;
  int64_t q_row_stride, q_head_stride, slot_stride, value_offset;
  int64_t window, is_block;
  int64_t q_dtype, cache_dtype;
  float scale;
} pf_paged_attention;
}

namespace pilotfish {
namespace PF_ISA {
namespace attention {

constexpr int64_t WIDE = 256;           // heads wider than this
constexpr int64_t TILE_LINES = 96, WIDE_TILE_LINES = 24;
constexpr int64_t SHARE_COST = 8;       // of a key beside its lines
constexpr int64_t CUT_FROM = 1 << 13;   // cost that a thread must have too much for units to be cut

struct Unit {
  int64_t request, kv_head, first_line, lines;
  Range keys;  // positions that any of its lines sees
  int64_t first_partition() const { return keys.begin / SPAN; }
  int64_t partitions() const { return (keys.end + SPAN - 1) / SPAN - first_partition(); }
  int64_t cost() const { return (lines + SHARE_COST) * (keys.end - keys.begin); }
};

static inline Range seen_by(const pf_paged_attention* a, int64_t position, int64_t num_keys) {
  Range keys = {0, a->is_block ? num_keys : position + 1};
  if (!a->window) return keys;
  return both(keys, {position - a->window + 1, position + a->window});
}

// Calls body(unit) for every unit of the pass, in the same order on every thread.
template <typename Body>
PF_INLINE void for_each_unit(const pf_paged_attention* a, Body body) {
  const pf_attention_pass* pass = a->pass;
  const int64_t group = a->heads / a->kv_heads, tile = a->width > WIDE ? WIDE_TILE_LINES : TILE_LINES;
  for (int64_t b = 0; b < pass->requests; b++) {
    const int64_t rows = pass->row_offsets[b + 1] - pass->row_offsets[b], num_keys = pass->lengths[b] + rows;
    for (int64_t k = 0; k < a->kv_heads; k++) {
      for (int64_t line = 0; line < rows * group; line += tile) {
        const int64_t lines = rows * group - line < tile ? rows * group - line : tile;
        const int64_t first = pass->lengths[b] + line / group, last = pass->lengths[b] + (line + lines - 1) / group;
        body(Unit{b, k, line, lines, either(seen_by(a, first, num_keys), seen_by(a, last, num_keys))});
      }
    }
  }
}

// How a pass's work is shared: every thread has a run of equal cost. Units are cut between partitions only where that
// is worth a wait; what other threads than the first have of a unit is then left in shared memory for the first.
struct Sharing {
  int64_t total;
  int32_t count;
  bool cuts;
  // The thread that computes partition `index` of a unit before which so much cost lies.
  int32_t thread_of(const Unit& unit, int64_t cost_before, int64_t index) const {
    const int64_t partitions = cuts ? unit.partitions() : 1;
    const int64_t middle = cost_before + unit.cost() * (2 * index + 1) / (2 * partitions);
    return (int32_t)(middle * count / total);
  }
};

static Sharing share_out(const pf_paged_attention* a, const pf_team* team) {
  Sharing sharing = {0, team->count, false};
  for_each_unit(a, [&](const Unit& unit) { sharing.total += unit.cost(); });
  if (team->count == 1 || sharing.total == 0) return sharing;
  int64_t before = 0, load = 0, most = 0;
  int32_t thread = -1;
  for_each_unit(a, [&](const Unit& unit) {
    const int32_t next = sharing.thread_of(unit, before, 0);
    load = next == thread ? load + unit.cost() : unit.cost();
    thread = next;
    most = load > most ? load : most;
    before += unit.cost();
  });
  sharing.cuts = most - sharing.total / team->count > CUT_FROM;
  return sharing;
}

// Results of some partitions of a unit's lines, merged: [lines] highest, [lines] total, [lines, padded_values] values.
struct Result {
  float *highest, *total, *values;
};

// Adds the next partition's result. total is 0 where a line has seen no key.
static void merge(const Tile& t, Result sum, Result next) {
  for (int64_t i = 0; i < t.lines; i++) {
    if (next.total[i] == 0.0f) continue;
    float* values = sum.values + i * t.padded_values;
    const float* added = next.values + i * t.padded_values;
    if (sum.total[i] == 0.0f) {
      sum.highest[i] = next.highest[i], sum.total[i] = next.total[i];
      memcpy(values, added, sizeof(float) * (size_t)t.padded_values);
      continue;
    }
    const Floats highest = larger(all(sum.highest[i]), all(next.highest[i]));
    const Floats before = exp(all(sum.highest[i]) - highest), after = exp(all(next.highest[i]) - highest);
    for (int64_t c = 0; c < t.padded_values; c += LANES) {
      store(values + c, fma(load(values + c), before, load(added + c) * after));
    }
    float lanes[LANES];
    store(lanes, fma(all(sum.total[i]), before, all(next.total[i]) * after));
    sum.total[i] = lanes[0];
    store(lanes, highest);
    sum.highest[i] = lanes[0];
  }
}

// One thread's work on the units that are its own.
template <int CACHE_DTYPE>
struct Worker {
  using Type = typename Element<CACHE_DTYPE>::Type;
  const pf_paged_attention* a;
  Tile tile;
  Result sum;

  int64_t result_floats() const { return tile_lines() * (2 + tile.padded_values); }
  int64_t tile_lines() const { return a->width > WIDE ? WIDE_TILE_LINES : TILE_LINES; }
  Result result_at(float* memory) const {
    return {memory, memory + tile_lines(), memory + 2 * tile_lines()};
  }

  Worker(const pf_paged_attention* args, pf_team* team) : a(args) {
    const int64_t lines = tile_lines();
    tile.width = a->width, tile.value_width = a->value_width, tile.scale = a->scale;
    tile.padded_width = (a->width + LANES - 1) / LANES * LANES;
    tile.padded_values = (a->value_width + LANES - 1) / LANES * LANES;
    tile.widened_stride = tile.padded_values + LANES;
    const int64_t sizes[] = {lines * tile.padded_width, SCORE_GROUPS * LANES * tile.padded_width, lines * SPAN,
                             SPAN * tile.widened_stride, result_floats(), result_floats()};
    int64_t floats = 0;
    for (int64_t size : sizes) floats += size;
    float* memory = (float*)team->scratch(
        team, 0, (int64_t)sizeof(float) * floats + (int64_t)sizeof(Range) * lines + (int64_t)sizeof(int64_t) * SPAN);
    tile.q = memory, memory += sizes[0];
    tile.turned = memory, memory += sizes[1];
    tile.scores = memory, memory += sizes[2];
    tile.widened = memory, memory += sizes[3];
    const Result part = result_at(memory);
    tile.highest = part.highest, tile.total = part.total, tile.values = part.values;
    sum = result_at(memory + sizes[4]);
    memory += sizes[4] + sizes[5];
    tile.seen = (Range*)memory;
    tile.places = (int64_t*)(tile.seen + lines);
  }

  int64_t row_of(const Unit& unit, int64_t line) const { return (unit.first_line + line) / (a->heads / a->kv_heads); }
  int64_t head_of(const Unit& unit, int64_t line) const {
    const int64_t group = a->heads / a->kv_heads;
    return unit.kv_head * group + (unit.first_line + line) % group;
  }

  // Reads a unit's queries, and forgets the last unit's result.
  void begin(const Unit& unit) {
    tile.lines = unit.lines;
    const int64_t first_row = a->pass->row_offsets[unit.request];
    for (int64_t i = 0; i < unit.lines; i++) {
      sum.total[i] = 0.0f;
      const int64_t place = (first_row + row_of(unit, i)) * a->q_row_stride + head_of(unit, i) * a->q_head_stride;
      with_dtype(a->q_dtype, [&](auto dtype) {
        const auto* q = (const typename Element<dtype()>::Type*)a->q + place;
        for (int64_t h = 0; h < tile.padded_width; h += LANES) {
          store(tile.q + i * tile.padded_width + h, read_some<dtype()>(q + h, a->width - h));
        }
      });
    }
  }

  // Where the rows of a partition's keys lie. Keys outside of `seen` are given a neighbour's place: theirs may be none.
  void find_places(const Unit& unit, int64_t start, Range seen) {
    const pf_attention_pass* pass = a->pass;
    const int32_t* pages = pass->pages + unit.request * pass->page_stride;
    int64_t page = (start + seen.begin) / pass->page_size, offset = (start + seen.begin) % pass->page_size;
    for (int64_t j = seen.begin; j < seen.end; j++) {
      tile.places[j] = (pages[page] * pass->page_size + offset) * a->slot_stride;
      if (++offset == pass->page_size) page++, offset = 0;
    }
    constexpr int64_t KEYS = SCORE_GROUPS * LANES;
    for (int64_t j = seen.begin; j % KEYS != 0; j--) tile.places[j - 1] = tile.places[seen.begin];
    for (int64_t j = seen.end; j % KEYS != 0; j++) tile.places[j] = tile.places[seen.end - 1];
  }

  // Leaves what partition `index` of the unit gives in the tile's result.
  void attend(const Unit& unit, int64_t index) {
    const int64_t start = (unit.first_partition() + index) * SPAN;
    const pf_attention_pass* pass = a->pass;
    const int64_t length = pass->lengths[unit.request];
    const int64_t num_keys = length + pass->row_offsets[unit.request + 1] - pass->row_offsets[unit.request];
    Range seen = {SPAN, 0};
    for (int64_t i = 0; i < unit.lines; i++) {
      const Range keys = seen_by(a, length + row_of(unit, i), num_keys);
      tile.seen[i] = both({keys.begin - start, keys.end - start}, {0, SPAN});
      if (is_empty(tile.seen[i])) tile.seen[i] = {0, 0};
      else seen = either(seen, tile.seen[i]);
    }
    find_places(unit, start, seen);
    const Type* keys = (const Type*)a->cache + unit.kv_head * a->width;
    attend_partition<CACHE_DTYPE>(tile, keys, keys + a->value_offset, seen);
  }

  void add(Result part) { merge(tile, sum, part); }
  Result part() const { return {tile.highest, tile.total, tile.values}; }

  // Writes the unit's rows.
  void finish(const Unit& unit) {
    const int64_t first_row = a->pass->row_offsets[unit.request];
    for (int64_t i = 0; i < unit.lines; i++) {
      const Floats inverse = all(1.0f / sum.total[i]);
      const float* values = sum.values + i * tile.padded_values;
      const int64_t place = ((first_row + row_of(unit, i)) * a->heads + head_of(unit, i)) * a->value_width;
      with_dtype(a->q_dtype, [&](auto dtype) {
        auto* out = (typename Element<dtype()>::Type*)a->out + place;
        for (int64_t c = 0; c < a->value_width; c += LANES) {
          write_some<dtype()>(out + c, load(values + c) * inverse, a->value_width - c);
        }
      });
    }
  }
};

template <int CACHE_DTYPE>
static void run(const pf_paged_attention* a, pf_team* team) {
  const Sharing sharing = share_out(a, team);
  if (sharing.total == 0) return;
  Worker<CACHE_DTYPE> worker(a, team);
  // Partitions whose unit's first is another thread's.
  int64_t left = 0, before = 0;
  if (sharing.cuts) {
    for_each_unit(a, [&](const Unit& unit) {
      const int32_t first = sharing.thread_of(unit, before, 0);
      for (int64_t p = 1; p < unit.partitions(); p++) left += sharing.thread_of(unit, before, p) != first;
      before += unit.cost();
    });
  }
  const int64_t left_bytes = (int64_t)sizeof(float) * left * worker.result_floats();
  float* shared = left ? (float*)team->shared(team, 0, left_bytes) : nullptr;
  Unit open = {};  // the unit that this thread began and others end
  int64_t open_from = 0, open_parts = 0, next_left = 0;
  before = 0;
  for_each_unit(a, [&](const Unit& unit) {
    const int32_t first = sharing.thread_of(unit, before, 0);
    bool has_begun = false;
    const int64_t unit_from = next_left;
    for (int64_t p = 0; p < unit.partitions(); p++) {
      const int32_t thread = sharing.cuts ? sharing.thread_of(unit, before, p) : first;
      const int64_t index = thread == first ? 0 : next_left++;
      if (thread != team->index) continue;
      if (!has_begun) worker.begin(unit);
      has_begun = true;
      worker.attend(unit, p);
      if (thread == first) {
        worker.add(worker.part());
      } else {
        const Result to = worker.result_at(shared + index * worker.result_floats());
        memcpy(to.highest, worker.part().highest, sizeof(float) * (size_t)worker.result_floats());
      }
    }
    before += unit.cost();
    if (first != team->index) return;
    if (next_left == unit_from) return worker.finish(unit);
    open = unit, open_from = unit_from, open_parts = next_left - unit_from;
  });
  if (!left) return;
  team->wait(team);
  for (int64_t i = 0; i < open_parts; i++) {
    worker.add(worker.result_at(shared + (open_from + i) * worker.result_floats()));
  }
  if (open_parts) worker.finish(open);
}

}  // namespace attention

static void paged_attention(const void* args, pf_team* team) {
  const pf_paged_attention* a = (const pf_paged_attention*)args;
  with_dtype(a->cache_dtype, [&](auto dtype) { attention::run<dtype()>(a, team); });
}

}  // namespace PF_ISA
}  // namespace pilotfish
