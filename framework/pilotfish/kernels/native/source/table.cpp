// Every kernel, compiled once for each instruction set (PF_ISA), and the table of them.
// No std templates here: the linker keeps one copy of each, and it could be this instruction set's.
#define PF_JOIN_(a, b) a##b
#define PF_JOIN(a, b) PF_JOIN_(a, b)

#include "pilotfish/op.h"
#include "pilotfish/rows.h"
#include "pilotfish/simd.h"

#if !defined(PF_KERNELS_H)
#error "PF_KERNELS_H is the header that lists the kernels, in quotes: the core's kernels.h, or a plugin's"
#endif
#include PF_KERNELS_H

// The compiler was told this set and no better one: it may use whatever it was told.
#define PF_LEVEL_neon 0
#define PF_LEVEL_avx2 1
#define PF_LEVEL_avx512 2
#if defined(__ARM_FEATURE_SVE) || defined(__AVX512BF16__) || defined(__AVX512VNNI__)
#define PF_LEVEL -1
#elif defined(__AVX512F__)
#define PF_LEVEL 2
#elif defined(__AVX2__)
#define PF_LEVEL 1
#else
#define PF_LEVEL 0
#endif
static_assert(PF_JOIN(PF_LEVEL_, PF_ISA) == PF_LEVEL, "compiled with other instructions than PF_ISA says (-march?)");

extern "C" {
extern const pf_named_function PF_JOIN(pf_table_, PF_ISA)[];
const pf_named_function PF_JOIN(pf_table_, PF_ISA)[] = {
#define PF_KERNEL(name) {#name, pilotfish::PF_ISA::name},
    PF_KERNELS
#undef PF_KERNEL
    {nullptr, nullptr},
};
}
