// What this processor and its operating system can run. Asks the processor itself: not every compiler's runtime
// library has __builtin_cpu_supports.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace pilotfish {

#if defined(__x86_64__)

class Processor {
 public:
  Processor() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    ecx_1_ = c;
    if (has(ecx_1_, OSXSAVE)) {
      unsigned low, high;
      asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved_ = low;
    }
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) ebx_7_ = b;
    if (__get_cpuid(0x80000001, &a, &b, &c, &d)) ecx_extended_ = c;
  }
  // Each is all that building.py lets the compiler use for that instruction set.
  bool has_avx2() const {
    const bool first = has(ecx_1_, FMA) && has(ecx_1_, POPCNT) && has(ecx_1_, AVX) && has(ecx_1_, F16C);
    return (saved_ & YMM) == YMM && first && has(ebx_7_, AVX2) && has(ebx_7_, BMI1) && has(ebx_7_, BMI2) &&
           has(ecx_extended_, LZCNT);
  }
  bool has_avx512() const {
    return has_avx2() && (saved_ & ZMM) == ZMM && has(ebx_7_, AVX512F) && has(ebx_7_, AVX512DQ) &&
           has(ebx_7_, AVX512BW) && has(ebx_7_, AVX512VL);
  }

 private:
  enum Bit {
    FMA = 12, POPCNT = 23, OSXSAVE = 27, AVX = 28, F16C = 29,                                 // leaf 1, ecx
    BMI1 = 3, AVX2 = 5, BMI2 = 8, AVX512F = 16, AVX512DQ = 17, AVX512BW = 30, AVX512VL = 31,  // leaf 7, ebx
    LZCNT = 5,                                                                                // leaf 0x80000001, ecx
  };
  // Registers that the operating system saves when it switches threads.
  static constexpr unsigned YMM = 0x06, ZMM = 0xe6;
  static bool has(unsigned word, Bit bit) { return word >> bit & 1; }
  unsigned saved_ = 0, ecx_1_ = 0, ebx_7_ = 0, ecx_extended_ = 0;
};

#endif

}  // namespace pilotfish
