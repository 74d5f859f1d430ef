// The library's C interface: which instruction sets there are, and runs of calls by torch's threads or our own.
// Compiled for the processor's baseline: nothing here may need more.
#include <new>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "pilotfish/op.h"
#include "pool.h"
#include "processor.h"
#include "tables.h"
#include "team.h"

#if defined(__SSE3__) || defined(__ARM_FEATURE_SVE)
#error "main.cpp runs before the processor is asked: compile it for the baseline, without -march and the like"
#endif
using namespace pilotfish;

namespace {

struct InstructionSet {
  const char* name;
  const pf_named_function* table;
  bool (*is_here)();
};
// Best first.
const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"avx512", pf_table_avx512, [] { return Processor().has_avx512(); }},
    {"avx2", pf_table_avx2, [] { return Processor().has_avx2(); }},
#else
    {"neon", pf_table_neon, [] { return true; }},
#endif
};
constexpr int32_t NUM_SETS = sizeof(SETS) / sizeof(SETS[0]);
bool is_set(int32_t index) { return 0 <= index && index < NUM_SETS; }

// --- GNU OpenMP's pool, where it was handed over.

typedef void (*gomp_parallel)(void (*)(void*), void*, unsigned, unsigned);
typedef int (*omp_number)();
std::atomic<gomp_parallel> openmp_parallel{nullptr};
std::atomic<omp_number> openmp_num_threads{nullptr}, openmp_thread_num{nullptr};

// There may be fewer threads than were asked for (OMP_THREAD_LIMIT, OMP_DYNAMIC, a region inside a region).
void openmp_body(void* run) { ((Run*)run)->as(openmp_thread_num.load()(), openmp_num_threads.load()()); }

// --- Our own.

std::atomic<Pool*> own_pool{nullptr};

// Never deleted: its threads may outlive main.
Pool* pool() {
  Pool* found = own_pool.load(std::memory_order_acquire);
  if (found) return found;
  Pool* made = new (std::nothrow) Pool();
  if (own_pool.compare_exchange_strong(found, made, std::memory_order_acq_rel)) return made;
  delete made;
  return found;
}

#if !defined(_WIN32)
// Threads stay with the parent: the child of a fork starts anew, and never asks OpenMP, which would wait for them.
void in_child() {
  openmp_parallel.store(nullptr);
  own_pool.store(nullptr);
}
const int registered = pthread_atfork(nullptr, nullptr, in_child);
#endif

}  // namespace

// The number of instruction sets compiled in, best first; a set's name; whether this processor has it.
PF_API int32_t pf_num_instruction_sets() { return NUM_SETS; }
PF_API const char* pf_instruction_set(int32_t index) { return is_set(index) ? SETS[index].name : nullptr; }
PF_API int32_t pf_has_instruction_set(int32_t index) { return is_set(index) && SETS[index].is_here(); }

// The function called `name` of an instruction set; null where there is none.
PF_API pf_function pf_find(int32_t index, const char* name) {
  return is_set(index) ? find(SETS[index].table, name) : nullptr;
}

// Uses the OpenMP pool whose functions these are (GNU's: GOMP_parallel, omp_get_num_threads, omp_get_thread_num)
// instead of threads of our own; null for our own again. Not in the child of a fork.
PF_API void pf_use_openmp(gomp_parallel parallel, omp_number num_threads, omp_number thread_num) {
  openmp_num_threads.store(num_threads);
  openmp_thread_num.store(thread_num);
  openmp_parallel.store(parallel);
}

// Runs calls one after the other with up to `threads` threads; the next begins when all have ended the last.
// May be called by several threads at once.
PF_API void pf_run(const pf_call* calls, int64_t num_calls, int32_t threads) {
  Run run(calls, num_calls);
  if (threads <= 1) return run.as(0, 1);
  if (gomp_parallel parallel = openmp_parallel.load(std::memory_order_acquire)) {
    return parallel(openmp_body, &run, (unsigned)threads, 0);
  }
  if (Pool* threads_of_ours = pool()) return threads_of_ours->run(&run, threads);
  run.as(0, 1);
}
PF_API void pf_run_one(pf_function function, const void* args, int32_t threads) {
  const pf_call call = {function, args};
  pf_run(&call, 1, threads);
}
