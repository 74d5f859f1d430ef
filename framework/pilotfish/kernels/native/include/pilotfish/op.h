// The one signature of every native function, and what a function may ask of the team that runs it.
// Plain C, so that a plugin's own library (any compiler) can be called by ours.
#pragma once
#include <stdint.h>

// Another number whenever what is declared here changes: a plugin's library of another one is not run.
#define PF_INTERFACE 1

#ifdef __cplusplus
extern "C" {
#endif

// One thread's view of the team that runs a call. All threads of a team run the same function with
// the same arguments; each does its share of the work. Nothing that a function computes may depend
// on `index` or `count`: they say who computes an output, never how.
typedef struct pf_team {
  int32_t index;  // this thread, 0 to count - 1
  int32_t count;  // threads of the team
  // Waits until every thread of the team is here.
  void (*wait)(struct pf_team*);
  // Memory of this thread alone, at least `bytes`, 64-byte aligned, uninitialised; the same memory
  // for the same slot (0 to 7) in every call on this thread, so nothing in it outlives a call.
  void* (*scratch)(struct pf_team*, int32_t slot, int64_t bytes);
  // Memory that all threads of the team share, likewise (slots 0 to 7). Every thread asks with the
  // same numbers; it waits for the team.
  void* (*shared)(struct pf_team*, int32_t slot, int64_t bytes);
  void* hidden;
} pf_team;

// args: the function's own record, as its kernel folder describes it.
typedef void (*pf_function)(const void* args, pf_team* team);

typedef struct pf_call {
  pf_function function;
  const void* args;
} pf_call;

typedef struct pf_named_function {
  const char* name;
  pf_function function;
} pf_named_function;

// Kinds of numbers in memory, as arguments name them.
enum pf_dtype { PF_FLOAT32 = 0, PF_BFLOAT16 = 1, PF_FLOAT16 = 2 };

#ifdef __cplusplus
}

namespace pilotfish {

// The half-open range of `total` equal pieces that one thread does.
struct Share {
  int64_t begin, end;
};
static inline Share share(int64_t total, const pf_team* team) {
  return {total * team->index / team->count, total * (team->index + 1) / team->count};
}

}  // namespace pilotfish
#endif
