// Threads of our own, for processes without a pool that can be shared. They live as long as the process.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <vector>

#include "team.h"

namespace pilotfish {

class Pool {
 public:
  // Runs with up to `count` threads, this one among them: fewer where the system gives no more. One team at a time;
  // who comes meanwhile (another thread, or a run inside a run) runs alone.
  void run(Run* work, int32_t count) {
    if (busy_.exchange(true, std::memory_order_acquire)) return work->as(0, 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      count = grow(count);
      work_ = work;
      count_ = count;
      left_.store(count - 1, std::memory_order_relaxed);
      turn_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work->as(0, count);
    for (int times = 0; left_.load(std::memory_order_acquire) != 0; times++) pause_again(times);
    busy_.store(false, std::memory_order_release);
  }

 private:
  // Makes the threads that are missing; returns how large a team can be.
  int32_t grow(int32_t count) {
    try {
      while ((int32_t)threads_.size() < count - 1) {
        threads_.reserve(threads_.size() + 1);
        const int32_t index = (int32_t)threads_.size() + 1;
        threads_.emplace_back([this, index, seen = turn_.load()] { serve(index, seen); });
        threads_.back().detach();
      }
      return count;
    } catch (const std::exception&) {
      return (int32_t)threads_.size() + 1;
    }
  }

  // A thread's life. seen: the turn that was over when it was made.
  void serve(int32_t index, int64_t seen) {
    for (;;) {
      for (int spins = 0; turn_.load(std::memory_order_acquire) == seen && spins < SPINS; spins++) pause_briefly();
      Run* work;
      int32_t count;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return turn_.load(std::memory_order_relaxed) != seen; });
        seen = turn_.load(std::memory_order_relaxed);
        work = work_;
        count = count_;
      }
      // Who is not of this team may come late, and look at a later one: the leader waits for its own only.
      if (index >= count) continue;
      work->as(index, count);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;  // of all that follows but the atomics
  std::condition_variable wake_;
  std::vector<std::thread> threads_;
  Run* work_ = nullptr;
  int32_t count_ = 0;
  std::atomic<int64_t> turn_{0};
  std::atomic<int32_t> left_{0};
};

}  // namespace pilotfish
