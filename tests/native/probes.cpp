// Functions that a test calls through the library, to see what teams do. Built alone, as a plugin's functions may be.
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "pilotfish/op.h"

#define PROBE extern "C" __attribute__((visibility("default"))) void

// Nothing: what a call costs.
PROBE nothing(const void*, pf_team*) {}

// out[i] += value for each of `count` elements, by whose share it is; team_size: of whoever ran.
struct Add {
  int64_t* out;
  int64_t count, value;
  int32_t* team_size;
};
PROBE add(const void* args, pf_team* team) {
  const Add* a = (const Add*)args;
  const pilotfish::Share mine = pilotfish::share(a->count, team);
  for (int64_t i = mine.begin; i < mine.end; i++) a->out[i] += a->value;
  if (team->index == 0 && a->team_size) *a->team_size = team->count;
}

// Rounds of: everyone writes into its place of shared memory, waits, and adds up what all wrote. wrong: whoever saw
// another sum, or scratch that somebody else wrote to.
struct Rounds {
  int64_t rounds;
  int64_t* wrong;
};
PROBE rounds(const void* args, pf_team* team) {
  const Rounds* a = (const Rounds*)args;
  int64_t* all = (int64_t*)team->shared(team, 0, 8 * team->count);
  int64_t* own = (int64_t*)team->scratch(team, 0, 8);
  *own = team->index;
  for (int64_t round = 0; round < a->rounds; round++) {
    all[team->index] = round * 100 + team->index;
    team->wait(team);
    int64_t sum = 0;
    for (int32_t i = 0; i < team->count; i++) sum += all[i];
    if (sum != round * 100 * team->count + team->count * (team->count - 1) / 2 || *own != team->index) {
      __atomic_fetch_add(a->wrong, 1, __ATOMIC_RELAXED);
    }
    team->wait(team);
  }
}

// A run inside a run: the leader has the library do `inner`, while everyone's memory must stay as it is.
struct Nested {
  void (*run_one)(pf_function, const void*, int32_t);
  pf_function inner;
  const void* inner_args;
  int64_t* wrong;
};
PROBE nested(const void* args, pf_team* team) {
  const Nested* a = (const Nested*)args;
  char* all = (char*)team->shared(team, 0, 4096);
  char* own = (char*)team->scratch(team, 0, 4096);
  if (team->index == 0) memset(all, 0x5a, 4096);
  memset(own, team->index, 4096);
  team->wait(team);
  if (team->index == 0) a->run_one(a->inner, a->inner_args, 3);
  team->wait(team);
  for (int i = 0; i < 4096; i++) {
    if (all[i] != 0x5a || own[i] != (char)team->index) __atomic_fetch_add(a->wrong, 1, __ATOMIC_RELAXED);
  }
}

// A run inside a run, where the system gives no memory any more, and what it gave is used up.
PROBE nested_without_memory(const void* args, pf_team*) {
  const Nested* a = (const Nested*)args;
  const rlimit none = {0, RLIM_INFINITY};
  setrlimit(RLIMIT_AS, &none);
  void* volatile memory;
  for (size_t size = 1 << 24; size > 4096; size /= 2) while ((memory = malloc(size))) {}
  for (size_t size = 4096; size > 0; size -= 16) while ((memory = malloc(size))) {}
  a->run_one(a->inner, a->inner_args, 1);
}

// Scratch that no machine has.
PROBE too_much_memory(const void*, pf_team* team) { team->scratch(team, 0, (int64_t)1 << 50); }
