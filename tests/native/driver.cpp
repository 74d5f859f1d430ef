// Runs every case of cases.h on one instruction set after the other, and prints a digest of what each gives.
//
//     driver LIBRARY THREADS        prints lines of: instruction set, case, digest
//
// Needs nothing but the library's file, so it runs where Python and torch do not: on another processor's emulator, or
// under a sanitizer. Inputs come from an integer hash: they are the same everywhere.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

typedef pf_function (*find_function)(int32_t, const char*);
typedef void (*run_function)(pf_function, const void*, int32_t);

static int failures = 0;

// One set of inputs, and what kernels make of them. Its memory ends where each array does: a sanitizer sees who reads on.
class Case {
 public:
  Case(find_function find, run_function run, int32_t set, int32_t threads)
      : find_(find), run_(run), set_(set), threads_(threads) {}

  // Arrays, 64-byte aligned as torch has them, until the case ends.
  void* bytes(size_t count) {
    uint8_t* made = (uint8_t*)nothing(count);
    for (size_t i = 0; i < count; i++) made[i] = (uint8_t)next();
    return made;
  }
  // Every bit set: NaN in all float types, -1 in integers.
  void* nothing(size_t count) {
    void* made = aligned_alloc(64, (count + 63) / 64 * 64);
    // The end is what matters: an array that is no multiple of 64 bytes stands at its memory's end.
    made = (count % 64) ? at_the_end(made, count) : keep(made);
    memset(made, 0xff, count);
    return made;
  }
  // Numbers of a pf_dtype from low to high; all are exact in it.
  void* numbers(int64_t dtype, size_t count, float low = -2.0f, float high = 2.0f) {
    void* made = nothing(count * (dtype == PF_FLOAT32 ? 4 : 2));
    for (size_t i = 0; i < count; i++) put(dtype, made, i, low + (high - low) * (float)(next() >> 8) * 0x1p-24f);
    return made;
  }
  float* floats(size_t count, float low = -2.0f, float high = 2.0f) {
    return (float*)numbers(PF_FLOAT32, count, low, high);
  }
  // Whole numbers from 0 to end - 1.
  template <typename Int>
  Int* whole(size_t count, uint64_t end) {
    Int* made = (Int*)nothing(count * sizeof(Int));
    for (size_t i = 0; i < count; i++) made[i] = (Int)(next() % end);
    return made;
  }
  template <typename Int>
  Int* list(const std::vector<Int>& values) {
    return (Int*)memcpy(nothing(values.size() * sizeof(Int)), values.data(), values.size() * sizeof(Int));
  }
  static void put(int64_t dtype, void* array, size_t index, float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if (dtype == PF_FLOAT32) ((float*)array)[index] = x;
    else if (dtype == PF_BFLOAT16) ((uint16_t*)array)[index] = (uint16_t)(bits >> 16);
    else ((uint16_t*)array)[index] = half_of(bits);
  }

  template <typename Args>
  void run(const char* name, Args& args) {
    pf_function function = find_(set_, name);
    if (function) return run_(function, &args, threads_);
    fprintf(stderr, "the library has no function %s\n", name);
    failures++;
  }
  // Takes what was computed into the digest.
  void result(const void* memory, size_t count) {
    for (size_t i = 0; i < count; i++) digest_ = (digest_ ^ ((const uint8_t*)memory)[i]) * 0x100000001b3;
  }
  uint64_t digest() const { return digest_; }

 private:
  uint32_t next() {
    uint32_t x = counter_++ * 0x9e3779b9u + 0x7f4a7c15u;
    x = (x ^ x >> 16) * 0x85ebca6bu;
    x = (x ^ x >> 13) * 0xc2b2ae35u;
    return x ^ x >> 16;
  }
  // Towards zero; of numbers below the smallest normal one nothing is left.
  static uint16_t half_of(uint32_t bits) {
    const uint32_t sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 0xff;
    return (uint16_t)(exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
  }
  void* keep(void* made) {
    memory_.emplace_back(made, free);
    return made;
  }
  void* at_the_end(void* made, size_t count) {
    free(made);
    return keep(malloc(count ? count : 1));
  }

  find_function find_;
  run_function run_;
  int32_t set_, threads_;
  uint32_t counter_ = 0;
  uint64_t digest_ = 0xcbf29ce484222325;
  std::vector<std::unique_ptr<void, void (*)(void*)>> memory_;
};

struct NamedCase {
  const char* name;
  void (*body)(Case&);
};

#include "cases.h"

template <typename Function>
static Function found(void* library, const char* name) {
  void* address = dlsym(library, name);
  if (address) return (Function)address;
  fprintf(stderr, "the library has no %s\n", name);
  exit(2);
}

int main(int count, char** words) {
  if (count != 3) {
    fprintf(stderr, "wanted: driver LIBRARY THREADS\n");
    return 2;
  }
  void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto find = found<find_function>(library, "pf_find");
  const auto run = found<run_function>(library, "pf_run_one");
  const auto name = found<const char* (*)(int32_t)>(library, "pf_instruction_set");
  const auto is_here = found<int32_t (*)(int32_t)>(library, "pf_has_instruction_set");
  for (int32_t set = 0; name(set); set++) {
    if (!is_here(set)) continue;
    for (const NamedCase& one : CASES) {
      Case made(find, run, set, atoi(words[2]));
      one.body(made);
      printf("%s %s %016llx\n", name(set), one.name, (unsigned long long)made.digest());
    }
  }
  return failures ? 1 : 0;
}
