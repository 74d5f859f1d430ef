// One run of calls by a team of threads: the barrier between them, and the memory that threads keep from run to run.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "pilotfish/op.h"

namespace pilotfish {

constexpr int SLOTS = 8;
constexpr int SPINS = 4000;  // about a fifth of a millisecond; then other threads are let in

inline void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
// Waits a little longer the more often it was called before.
inline void pause_again(int times) {
  if (times < SPINS) pause_briefly();
  else std::this_thread::yield();
}

// Kernels compute as IEEE 754 has it: rounded to nearest, subnormal numbers kept. A thread may have been told otherwise
// (torch.set_flush_denormal, fesetround), and the others of its team not; it has its own modes again when this ends.
class UsualArithmetic {
 public:
#if defined(__x86_64__)
  UsualArithmetic() : modes_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~UsualArithmetic() { _mm_setcsr(modes_); }

 private:
  const unsigned modes_;
#elif defined(__aarch64__)
  UsualArithmetic() {
    asm volatile("mrs %0, fpcr" : "=r"(modes_));
    asm volatile("msr fpcr, %0" : : "r"(uint64_t{0}) : "memory");
  }
  ~UsualArithmetic() { asm volatile("msr fpcr, %0" : : "r"(modes_) : "memory"); }

 private:
  uint64_t modes_;
#endif
};

[[noreturn]] inline void end_without_memory(size_t bytes) {
  // Nobody above a kernel could go on without its result.
  fprintf(stderr, "pilotfish: no memory for %zu bytes of a kernel's scratch\n", bytes);
  abort();
}

// Pieces of 64-byte aligned memory, each kept until a larger one is wanted in its place.
class Kept {
 public:
  void* at_least(int slot, size_t bytes) {
    if (size_[slot] < bytes) {
      release(memory_[slot]);
      size_[slot] = (bytes + bytes / 4 + 4095) / 4096 * 4096;
      memory_[slot] = aligned(size_[slot]);
      if (!memory_[slot]) end_without_memory(size_[slot]);
    }
    return memory_[slot];
  }
  Kept() = default;
  Kept(const Kept&) = delete;
  ~Kept() {
    for (void* one : memory_) release(one);
  }

 private:
#if defined(_WIN32)
  static void* aligned(size_t bytes) { return _aligned_malloc(bytes, 64); }
  static void release(void* memory) { _aligned_free(memory); }
#else
  static void* aligned(size_t bytes) {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
  }
  static void release(void* memory) { free(memory); }
#endif
  void* memory_[SLOTS] = {};
  size_t size_[SLOTS] = {};
};

// A thread's scratch, and what the teams that it leads share.
struct Memory {
  Kept scratch, shared;
};
static thread_local Memory kept_memory;
static thread_local Memory* memory_in_use = nullptr;  // of the run that this thread is in

class Run {
 public:
  Run(const pf_call* calls, int64_t num_calls) : calls_(calls), num_calls_(num_calls) {}

  // Does one thread's part of every call. All of 0 to count - 1 must be running at once.
  void as(int32_t index, int32_t count) {
    const UsualArithmetic modes;
    Memory* outer = memory_in_use;
    // A run inside a run leaves the outer one's memory alone. Only a leader can be in one.
    if (outer && !inner_) inner_.reset(new (std::nothrow) Memory);
    if (outer && !inner_) end_without_memory(sizeof(Memory));
    memory_in_use = outer ? inner_.get() : &kept_memory;
    pf_team team = {index, count, wait, scratch, shared, this};
    for (int64_t i = 0; i < num_calls_; i++) {
      if (i) wait(&team);
      calls_[i].function(calls_[i].args, &team);
    }
    memory_in_use = outer;
  }

 private:
  static void wait(pf_team* team) {
    if (team->count == 1) return;
    Run* run = (Run*)team->hidden;
    int32_t round = run->round_.load(std::memory_order_relaxed);
    if (run->arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == team->count) {
      run->arrived_.store(0, std::memory_order_relaxed);
      run->round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int times = 0; run->round_.load(std::memory_order_acquire) == round; times++) pause_again(times);
  }
  static void* scratch(pf_team*, int32_t slot, int64_t bytes) {
    return memory_in_use->scratch.at_least(slot, (size_t)bytes);
  }
  static void* shared(pf_team* team, int32_t slot, int64_t bytes) {
    Run* run = (Run*)team->hidden;
    if (team->index == 0) run->shared_[slot] = memory_in_use->shared.at_least(slot, (size_t)bytes);
    wait(team);
    return run->shared_[slot];
  }

  const pf_call* calls_;
  int64_t num_calls_;
  void* shared_[SLOTS] = {};
  std::unique_ptr<Memory> inner_;
  alignas(64) std::atomic<int32_t> arrived_{0};
  alignas(64) std::atomic<int32_t> round_{0};
};

}  // namespace pilotfish
