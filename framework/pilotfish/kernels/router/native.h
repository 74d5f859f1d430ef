// Router: which experts each row goes to, and with which weights. A row is one thread's.
//
// Experts are compared as whole numbers that stand in the order of their scores, no number below all; of equal ones the
// lowest id is chosen.
#pragma once
#include "elementwise/native.h"
#include "grouped_linear/groups.h"
#include "pilotfish/functions.h"
#include "pilotfish/rows.h"

extern "C" {
// logits: [rows, experts] float32, rows row_stride apart. bias: [experts] float32 or null, added for the choice alone.
// choice: [rows, chosen] int64, ascending. weights: [rows, chosen] float32. Only experts of the kept_groups best groups
// (of `groups` equal ones, judged by their two best) may be chosen; kept_groups * (experts / groups) >= chosen.
// by_expert: where the rows sorted by expert go, nulls where nobody wants them.
typedef struct pf_choose_experts {
  const float* logits;
  const float* bias;
  int64_t* choice;
  float* weights;
  int64_t rows, experts, row_stride, chosen, groups, kept_groups;
  int64_t scoring;  // a Scoring
  int64_t normalize;
  double scale;
  pf_row_groups by_expert;
} pf_choose_experts;
}

namespace pilotfish {
namespace PF_ISA {

// As native.py numbers them.
enum Scoring { SCORES_GIVEN, SCORES_SIGMOID, SCORES_SOFTMAX };

constexpr int32_t NOT_ALLOWED = INT32_MIN;

// Whole numbers in the order of x; -0 is 0, and no number stands below all others, above NOT_ALLOWED.
PF_INLINE Ints ordered(Floats x) {
  const Ints bits = bits_as_ints(x + zero());
  const Ints order = bits ^ (shift_right_signed<31>(bits) & all_ints(INT32_MAX));
  return select(is_nan(x), all_ints(INT32_MIN + 1), order);
}

// The place of the largest of `count` numbers (a multiple of 16), the first of them where some are equal.
static int64_t first_largest(const int32_t* numbers, int64_t count) {
  Ints best = load_ints(numbers), at = lane_numbers();
  for (int64_t k = LANES; k < count; k += LANES) {
    const Ints here = load_ints(numbers + k);
    const Mask more = less(best, here);
    best = select(more, here, best);
    at = select(more, lane_numbers() + all_ints((int32_t)k), at);
  }
  int32_t bests[LANES], places[LANES];
  store_ints(bests, best);
  store_ints(places, at);
  int found = 0;
  for (int lane = 1; lane < LANES; lane++) {
    if (bests[lane] > bests[found] || (bests[lane] == bests[found] && places[lane] < places[found])) found = lane;
  }
  return places[found];
}

// scores: room for `count` numbers, rounded up to 16.
static void score_experts(const float* logits, float* scores, int64_t count, int64_t scoring) {
  if (scoring == SCORES_SOFTMAX) return softmax_row<PF_FLOAT32>(logits, scores, count, scores);
  for (int64_t k = 0; k < count; k += LANES) {
    const Floats x = read_some<PF_FLOAT32>(logits + k, count - k);
    store(scores + k, scoring == SCORES_SIGMOID ? sigmoid(x) : x);
  }
}

// Forbids the experts outside of the best groups. order: [groups, size]; best: room for `groups` numbers and 15 more.
static void keep_groups(int32_t* order, const float* biased, const pf_choose_experts* a, int32_t* best) {
  const int64_t size = a->experts / a->groups, padded = (a->groups + LANES - 1) / LANES * LANES;
  for (int64_t group = 0; group < padded; group++) {
    best[group] = NOT_ALLOWED;
    if (group >= a->groups) continue;
    const int64_t begin = group * size;
    int64_t first = begin, second = -1;
    for (int64_t i = begin + 1; i < begin + size; i++) {
      if (order[i] > order[first]) second = first, first = i;
      else if (second < 0 || order[i] > order[second]) second = i;
    }
    int32_t found[LANES];
    store_ints(found, ordered(all(biased[first] + biased[second])));
    best[group] = found[0];
  }
  for (int64_t kept = 0; kept < a->kept_groups; kept++) best[first_largest(best, padded)] = NOT_ALLOWED;
  // What is left in `best` was not kept.
  for (int64_t i = 0; i < a->experts; i++) {
    if (best[i / size] != NOT_ALLOWED) order[i] = NOT_ALLOWED;
  }
}

static void choose_experts(const void* args, pf_team* team) {
  const pf_choose_experts* a = (const pf_choose_experts*)args;
  const int64_t experts = a->experts, padded = (experts + LANES - 1) / LANES * LANES;
  const Share mine = share(a->rows, team);
  float* scores = (float*)team->scratch(team, 0, padded * 4);
  float* biased = (float*)team->scratch(team, 1, padded * 4);
  int32_t* order = (int32_t*)team->scratch(team, 2, padded * 4);
  int32_t* best = (int32_t*)team->scratch(team, 3, (a->groups + LANES) * 4);
  uint8_t* is_chosen = (uint8_t*)team->scratch(team, 4, padded);
  for (int64_t row = mine.begin; row < mine.end; row++) {
    score_experts(a->logits + row * a->row_stride, scores, experts, a->scoring);
    for (int64_t k = 0; k < experts; k += LANES) {
      Floats x = load(scores + k);
      if (a->bias) x = x + read_some<PF_FLOAT32>(a->bias + k, experts - k);
      store(biased + k, x);
      const Mask here = less(lane_numbers() + all_ints((int32_t)k), all_ints((int32_t)experts));
      store_ints(order + k, select(here, ordered(x), all_ints(NOT_ALLOWED)));
    }
    if (a->kept_groups < a->groups) keep_groups(order, biased, a, best);
    memset(is_chosen, 0, (size_t)experts);
    for (int64_t i = 0; i < a->chosen; i++) {
      const int64_t expert = first_largest(order, padded);
      is_chosen[expert] = 1;
      order[expert] = NOT_ALLOWED;
    }
    int64_t* choice = a->choice + row * a->chosen;
    float* weights = a->weights + row * a->chosen;
    float total = 0.0f;
    for (int64_t expert = 0, i = 0; expert < experts; expert++) {
      if (!is_chosen[expert]) continue;
      choice[i] = expert;
      weights[i++] = scores[expert];
      total = total + scores[expert];
    }
    total = total + 1e-20f;
    for (int64_t i = 0; i < a->chosen; i++) {
      if (a->normalize) weights[i] = weights[i] / total;
      weights[i] = weights[i] * (float)a->scale;
    }
  }
  if (!a->by_expert.rows) return;
  team->wait(team);
  if (team->index > 0) return;
  group_rows(a->choice, a->rows, a->chosen, experts, a->by_expert, (int64_t*)team->scratch(team, 0, experts * 8));
}

}  // namespace PF_ISA
}  // namespace pilotfish
