// Sampling: what a row's options make of its logits, and the token that follows. A row is one thread's.
//
// Every choice is a comparison of values that no order of work can change: a token's score is its own logit and its own
// noise, and the masses that top_p adds up are whole numbers. So no step here depends on threads, rows or registers,
// and a step may look at less than the whole row where a bound says that the rest cannot matter.
// Letters: V vocabulary. What each option means stands in sampling/truncation.py and sampling/penalties.py.
#pragma once
#include "pilotfish/rows.h"
#include "sampling/lists.h"
#include "sampling/masses.h"
#include "sampling/noise.h"

extern "C" {
// What became of a row.
enum pf_sampling_status {
  PF_SAMPLING_DONE = 0,
  PF_SAMPLING_BAD_LOGITS = 1,  // the model's own have `largest` NaN, +inf or -inf
  PF_SAMPLING_BAD_EDITED = 2,  // so have they after edits and temperature
  PF_SAMPLING_BAD_ID = 3,      // an edit names a token outside the vocabulary
};

// What is asked of a row, and what is found. All zero: the likeliest token, of logits as they are.
typedef struct pf_sampling_row {
  // Edits, in this order: bias, penalties of the tokens seen (prompt and answer, each once, with how often it was
  // generated), banned tokens.
  const int64_t* bias_ids;
  const float* bias;
  int64_t num_bias;
  const int64_t* seen_ids;
  const int64_t* seen_counts;
  int64_t num_seen;
  const int64_t* banned_ids;
  int64_t num_banned;
  float repetition_penalty, frequency_penalty, presence_penalty;
  float temperature;    // 0: greedy, and the next three are of no interest
  int64_t top_k;        // 0: off
  double top_p, min_p;  // 0: off
  uint64_t seed, position;
  int64_t wants_logprobs;
  int64_t num_top;  // likeliest tokens to report beside the token itself
  int64_t* top_ids;
  double* top_logprobs;

  // Found. num_kept, last_value: how many tokens top_k, top_p and min_p leave (0: none of them is on), and the lowest
  // logit among them.
  int64_t status;
  int64_t num_kept;
  int64_t rank;
  double logprob;
  float last_value, largest;
} pf_sampling_row;

typedef struct pf_sample_rows {
  pf_sampling_row* rows;  // [R]
  const float* logits;    // [R, V], V contiguous, stride in elements: the model's own
  float* processed;       // [R, V] contiguous or null: gets the logits whose softmax is the law. May be `logits`, but
                          // only where neither tokens nor log probabilities are asked
  int64_t* tokens;        // [R] or null: drawn, or given
  int64_t num_rows, vocab_size, row_stride;
  int64_t draws;   // 0: tokens are given
  int64_t failed;  // set to 1 where a row's status is not PF_SAMPLING_DONE
} pf_sample_rows;

// seeds, positions: [R]. out: [R, V] contiguous.
typedef struct pf_gumbel_noise {
  const uint64_t* seeds;
  const uint64_t* positions;
  float* out;
  int64_t num_rows, vocab_size;
} pf_gumbel_noise;

// bits: [n], the counters that the hash mixes. out: [n].
typedef struct pf_gumbel_of_counters {
  const uint64_t* counters;
  float* out;
  int64_t count;
} pf_gumbel_of_counters;

// logits, out: [R, V], V contiguous, strides in elements. masks: [R, ceil(V / 32)] contiguous.
typedef struct pf_apply_bitmask {
  const float* logits;
  const uint32_t* masks;
  float* out;
  int64_t num_rows, vocab_size, row_stride;
} pf_apply_bitmask;
}

namespace pilotfish {
namespace PF_ISA {
namespace sampling {

// --- What options leave: see sampling/truncation.py.

// A row as it is looked at: x / temperature, x with its peak and the maxima of its groups.
struct View {
  const float* x;
  int64_t vocab;
  float temperature;
  Peak peak;
  float largest;  // peak.value / temperature
};

// A list of all tokens whose quotient is `least` or more, and maybe some just below.
static int64_t list_from(const View* view, float least, const Work* w) {
  const double bound = (double)least * (double)view->temperature;
  const double lower = bound - fabs(bound) * 1e-6 - 1e-37;  // more than the quotient's rounding
  const float raw = lower < view->peak.value ? (float)lower : view->peak.value;
  const int64_t count = gather(view->x, view->vocab, w->maxima, raw, w);
  for (int64_t i = 0; i < count; i += LANES) store(w->values + i, load(w->values + i) / all(view->temperature));
  return count;
}

// The k tokens that come first.
static int64_t list_of_first(const View* view, int64_t k, const Work* w) {
  const int64_t num_maxima = num_groups(view->vocab) * LANES;
  float least = -INFINITY;
  if (4 * k <= num_maxima) least = kth_maximum(w->maxima, num_maxima, k, w) / view->temperature;
  const int64_t count = list_from(view, least, w);
  write_keys(w->values, count, w->keys);
  return keep(w, count, find_cut(w->keys, nullptr, count, (double)k));
}

// Masses of the list; returns their sum.
static int64_t list_masses(const Work* w, int64_t count, float largest) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    float part[LANES];
    store(part, mass_of(load_logits(w->values + i, count - i), all(largest)));
    for (int l = 0; l < LANES; l++) {
      w->masses[i + l] = (int64_t)part[l];
      total += w->masses[i + l];
    }
  }
  return total;
}

// The list that top_p leaves. count: of the list that top_k left; below 0: there is none yet.
static int64_t keep_top_p(const View* view, int64_t count, double top_p, const Work* w) {
  int64_t listed;
  double wanted;
  if (count >= 0) {
    listed = list_masses(w, count, view->largest);
    wanted = (double)listed * top_p;
  } else {
    wanted = (double)row_mass(view->x, view->vocab, view->temperature, view->largest) * top_p;
    // Together the tokens below this weigh less than 1 - top_p times the likeliest alone.
    const double depth = log_of_double((double)view->vocab / (1.0 - top_p)) + 0.1;
    count = list_from(view, (float)((double)view->largest - depth), w);
    listed = list_masses(w, count, view->largest);
    if ((double)listed < wanted) {  // the whole numbers may be short of it by their rounding
      count = list_from(view, -INFINITY, w);
      list_masses(w, count, view->largest);
    }
  }
  write_keys(w->values, count, w->keys);
  return keep(w, count, find_cut(w->keys, w->masses, count, wanted));
}

// The list that min_p leaves. count: of the list before; below 0: there is none yet.
static int64_t keep_min_p(const View* view, int64_t count, double min_p, const Work* w) {
  const double floor = log_of_double(min_p), largest = view->largest;
  if (count < 0) count = list_from(view, (float)(largest + floor - 1e-6 * fabs(largest + floor)), w);
  int64_t found = 0;
  for (int64_t i = 0; i < count; i++) {
    const float value = w->values[i];
    w->values[found] = value;
    w->ids[found] = w->ids[i];
    found += (double)value - largest >= floor;
  }
  return found;
}

// --- Draws: argmax of y + noise, the lowest id on ties.

struct Best {
  float score;
  int64_t id;
};

// y, bits: [LANES], logits and hashed bits of tokens; ids: theirs, or null: first, first + 1, ...
PF_INLINE void improve(Best* best, Floats y, const float* bits, const uint32_t* ids, int64_t first) {
  const Floats v = uniform(bits);
  uint32_t lanes = lanes_at_least(y + gumbel_at_most(v), all(best->score));
  if (!lanes) return;
  float scores[LANES];
  store(scores, gumbel(v) + y);
  for (; lanes; lanes &= lanes - 1) {
    const int l = __builtin_ctz(lanes);
    const int64_t id = ids ? (int64_t)ids[l] : first + l;
    if (scores[l] > best->score || (scores[l] == best->score && id < best->id)) *best = {scores[l], id};
  }
}

// Of the list.
static int64_t draw_from_list(const Work* w, int64_t count, uint64_t key) {
  Best best = {-INFINITY, INT64_MAX};
  for (int64_t l = count; l < count + LANES; l++) w->values[l] = -INFINITY, w->ids[l] = 0;
  for (int64_t i = 0; i < count; i += LANES) {
    float bits[LANES];
    hash_tokens(key, w->ids + i, bits);
    improve(&best, load(w->values + i), bits, w->ids + i, 0);
  }
  return best.id;
}

// Of all tokens. The likeliest comes first: then few others need their noise in full.
static int64_t draw_from_all(const View* view, uint64_t key) {
  Best best = {-INFINITY, INT64_MAX};
  float bits[GROUP];
  for (int64_t first = view->peak.id / GROUP * GROUP, turn = -1;;) {
    hash_group(key, (uint64_t)first, bits);
    for (int64_t i = 0; i < GROUP && first + i < view->vocab; i += LANES) {
      Floats y = load_logits(view->x + first + i, view->vocab - first - i) / all(view->temperature);
      improve(&best, y, bits + i, nullptr, first + i);
    }
    first = ++turn * GROUP;
    if (first >= view->vocab) return best.id;
  }
}

// --- Edits: see sampling/penalties.py.

PF_INLINE bool are_tokens(const int64_t* ids, int64_t count, int64_t vocab) {
  for (int64_t i = 0; i < count; i++) {
    if (ids[i] < 0 || ids[i] >= vocab) return false;
  }
  return true;
}

// x: [V], changed in place. False where an id is no token's.
static bool edit(const pf_sampling_row* a, int64_t vocab, float* x) {
  if (!are_tokens(a->bias_ids, a->num_bias, vocab) || !are_tokens(a->seen_ids, a->num_seen, vocab) ||
      !are_tokens(a->banned_ids, a->num_banned, vocab)) {
    return false;
  }
  for (int64_t i = 0; i < a->num_bias; i++) x[a->bias_ids[i]] += a->bias[i];
  for (int64_t i = 0; i < a->num_seen; i++) {
    float value = x[a->seen_ids[i]];
    const float count = (float)a->seen_counts[i];
    if (a->repetition_penalty != 1.0f) {
      value = value > 0.0f ? value / a->repetition_penalty : value * a->repetition_penalty;
    }
    value = value - count * a->frequency_penalty;
    if (count > 0.0f) value = value - a->presence_penalty;
    x[a->seen_ids[i]] = value;
  }
  for (int64_t i = 0; i < a->num_banned; i++) x[a->banned_ids[i]] = -INFINITY;
  return true;
}

// --- Log probabilities: see sampling/logprobs.py.

// Sorts the list by value, the highest first; equal ones stay in their order.
static void sort_list(const Work* w, int64_t count) {
  uint32_t *keys = w->keys, *ids = w->ids, *keys_to = w->spare_keys, *ids_to = (uint32_t*)w->masses;
  write_keys(w->values, count, keys);
  for (int shift = 0; shift < 32; shift += 8) {  // four turns, so the ids end where they began
    int64_t starts[257] = {};
    for (int64_t i = 0; i < count; i++) starts[(keys[i] >> shift & 255) + 1]++;
    for (int b = 0; b < 256; b++) starts[b + 1] += starts[b];
    for (int64_t i = 0; i < count; i++) {
      const int64_t to = starts[keys[i] >> shift & 255]++;
      keys_to[to] = keys[i];
      ids_to[to] = ids[i];
    }
    uint32_t *keys_were = keys, *ids_were = ids;
    keys = keys_to, ids = ids_to, keys_to = keys_were, ids_to = ids_were;
  }
}

// raw: of the model's own logits, with the maxima of their groups in w.
static void report(pf_sampling_row* a, int64_t token, const View* raw, const Work* w) {
  const double total = (double)row_mass(raw->x, raw->vocab, 1.0f, raw->largest);
  const double normalizer = (double)raw->largest + (log_of_double(total) - MASS_BITS * 0.693147180559945309);
  const float value = raw->x[token];
  a->logprob = (double)value - normalizer;
  a->rank = 1;
  for (int64_t i = 0; i < raw->vocab; i++) a->rank += raw->x[i] > value;
  for (int64_t i = 0; i < token; i++) a->rank += raw->x[i] == value;
  const int64_t count = a->num_top < raw->vocab ? a->num_top : raw->vocab;
  if (count <= 0) return;
  list_of_first(raw, count, w);
  sort_list(w, count);
  for (int64_t i = 0; i < count; i++) {
    a->top_ids[i] = w->ids[i];
    a->top_logprobs[i] = (double)raw->x[w->ids[i]] - normalizer;
  }
}

// --- A row, whole.

static void write_processed(const View* view, int64_t listed, const Work* w, float* out) {
  if (listed < 0) {
    for (int64_t i = 0; i < view->vocab; i += LANES) {
      Floats y = load_logits(view->x + i, view->vocab - i) / all(view->temperature);
      write_some<PF_FLOAT32>(out + i, y, view->vocab - i);
    }
    return;
  }
  for (int64_t i = 0; i < view->vocab; i++) out[i] = -INFINITY;
  for (int64_t i = 0; i < listed; i++) out[w->ids[i]] = w->values[i];
}

PF_INLINE bool is_finite(float x) { return x - x == 0.0f; }

// The row's status. processed: null where it is not wanted; token: written where `draws`.
static int64_t sample_row(pf_sampling_row* a, const float* logits, int64_t vocab, float* processed, int64_t* token,
                          bool draws, const Work* w) {
  View raw = {logits, vocab, 1.0f, scan(logits, vocab, w->maxima), 0.0f};
  raw.largest = a->largest = raw.peak.value;
  if (!is_finite(raw.largest)) return PF_SAMPLING_BAD_LOGITS;
  View view = raw;
  const bool is_edited = a->num_bias || a->num_seen || a->num_banned;
  if (is_edited) {
    memcpy(w->edited, logits, sizeof(float) * (size_t)vocab);
    if (!edit(a, vocab, w->edited)) return PF_SAMPLING_BAD_ID;
    view.x = w->edited;
    view.peak = scan(view.x, vocab, w->maxima);
  }
  const bool is_greedy = a->temperature == 0.0f;
  view.temperature = is_greedy ? 1.0f : a->temperature;
  view.largest = a->largest = view.peak.value / view.temperature;
  if (!is_finite(view.largest)) return PF_SAMPLING_BAD_EDITED;
  int64_t listed = -1;
  if (!is_greedy) {
    if (a->top_k > 0) listed = list_of_first(&view, a->top_k < vocab ? a->top_k : vocab, w);
    if (a->top_p > 0.0) listed = keep_top_p(&view, listed, a->top_p, w);
    if (a->min_p > 0.0) listed = keep_min_p(&view, listed, a->min_p, w);
  }
  a->num_kept = listed < 0 ? 0 : listed;
  a->last_value = INFINITY;
  for (int64_t i = 0; i < a->num_kept; i++) {
    if (w->values[i] < a->last_value) a->last_value = w->values[i];
  }
  if (processed) write_processed(&view, listed, w, processed);
  if (draws) {
    const uint64_t key = row_key(a->seed, a->position);
    *token = is_greedy ? view.peak.id : listed < 0 ? draw_from_all(&view, key) : draw_from_list(w, listed, key);
  }
  if (a->wants_logprobs) {
    if (is_edited) scan(raw.x, vocab, w->maxima);
    report(a, *token, &raw, w);
  }
  return PF_SAMPLING_DONE;
}

}  // namespace sampling

static void sample_rows(const void* args, pf_team* team) {
  pf_sample_rows* a = (pf_sample_rows*)args;
  const int64_t vocab = a->vocab_size;
  const sampling::Work w = sampling::work_for(vocab, team);
  const Share mine = share(a->num_rows, team);
  for (int64_t i = mine.begin; i < mine.end; i++) {
    pf_sampling_row* row = a->rows + i;
    float* processed = a->processed ? a->processed + i * vocab : nullptr;
    int64_t* token = a->tokens ? a->tokens + i : nullptr;
    row->status = sampling::sample_row(row, a->logits + i * a->row_stride, vocab, processed, token, a->draws, &w);
    if (row->status) __atomic_store_n(&a->failed, 1, __ATOMIC_RELAXED);
  }
}

static void gumbel_noise(const void* args, pf_team* team) {
  const pf_gumbel_noise* a = (const pf_gumbel_noise*)args;
  const int64_t groups = sampling::num_groups(a->vocab_size);
  const Share mine = share(a->num_rows * groups, team);
  for (int64_t piece = mine.begin; piece < mine.end; piece++) {
    const int64_t row = piece / groups, first = piece % groups * sampling::GROUP;
    float bits[sampling::GROUP];
    sampling::hash_group(sampling::row_key(a->seeds[row], a->positions[row]), (uint64_t)first, bits);
    for (int64_t i = 0; i < sampling::GROUP && first + i < a->vocab_size; i += LANES) {
      Floats noise = sampling::gumbel(sampling::uniform(bits + i));
      write_some<PF_FLOAT32>(a->out + row * a->vocab_size + first + i, noise, a->vocab_size - first - i);
    }
  }
}

static void gumbel_of_counters(const void* args, pf_team* team) {
  const pf_gumbel_of_counters* a = (const pf_gumbel_of_counters*)args;
  const Share mine = share((a->count + LANES - 1) / LANES, team);
  for (int64_t i = mine.begin * LANES; i < a->count && i < mine.end * LANES; i += LANES) {
    float bits[LANES] = {};
    for (int64_t l = 0; l < LANES && i + l < a->count; l++) bits[l] = sampling::uniform_bits(a->counters[i + l]);
    write_some<PF_FLOAT32>(a->out + i, sampling::gumbel(sampling::uniform(bits)), a->count - i);
  }
}

static void apply_bitmask(const void* args, pf_team* team) {
  const pf_apply_bitmask* a = (const pf_apply_bitmask*)args;
  const int64_t words = (a->vocab_size + 31) / 32;
  int32_t lane_bits[LANES];
  for (int l = 0; l < LANES; l++) lane_bits[l] = 1 << l;
  const Ints bit = load_ints(lane_bits);
  const Share mine = share(a->num_rows * words, team);
  for (int64_t piece = mine.begin; piece < mine.end; piece++) {
    const int64_t row = piece / words, word = piece % words;
    for (int half = 0; half < 2; half++) {
      const int64_t first = word * 32 + half * LANES, left = a->vocab_size - first;
      if (left <= 0) break;
      const Ints allowed = all_ints((int32_t)(a->masks[piece] >> (half * LANES) & 0xffff)) & bit;
      const Floats x = read_some<PF_FLOAT32>(a->logits + row * a->row_stride + first, left);
      write_some<PF_FLOAT32>(a->out + row * a->vocab_size + first, select(less(all_ints(0), allowed), x, all(-INFINITY)), left);
    }
  }
}

}  // namespace PF_ISA
}  // namespace pilotfish
