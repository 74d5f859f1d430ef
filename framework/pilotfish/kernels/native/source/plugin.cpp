// What a plugin's library has instead of main.cpp: functions by the names of their instruction set and their own.
// The core asks the processor, and runs them with its threads.
#include <cstring>

#include "pilotfish/op.h"

#if !defined(PF_SOURCES)
#error "PF_SOURCES is the digest of the sources, in quotes"
#endif

#if defined(_WIN32)
#define PF_API extern "C" __declspec(dllexport)
#else
#define PF_API extern "C" __attribute__((visibility("default")))
#endif

extern "C" {
#if defined(__x86_64__)
extern const pf_named_function pf_table_avx2[];
extern const pf_named_function pf_table_avx512[];
extern const pf_named_function pf_table_avx512_bf16[];
#else
extern const pf_named_function pf_table_neon[];
#endif
}

namespace {

struct InstructionSet {
  const char* name;
  const pf_named_function* table;
};
const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"avx512_bf16", pf_table_avx512_bf16},
    {"avx512", pf_table_avx512},
    {"avx2", pf_table_avx2},
#else
    {"neon", pf_table_neon},
#endif
};

}  // namespace

PF_API const char* pf_sources() { return "pilotfish sources " PF_SOURCES; }

// The layout of pf_team that its functions were compiled for.
PF_API int32_t pf_interface() { return PF_INTERFACE; }

// The function of that name, compiled for that instruction set; null where there is none.
PF_API pf_function pf_find_in(const char* instruction_set, const char* name) {
  for (const InstructionSet& set : SETS) {
    if (strcmp(set.name, instruction_set) != 0) continue;
    for (const pf_named_function* one = set.table; one->name; one++) {
      if (strcmp(one->name, name) == 0) return one->function;
    }
  }
  return nullptr;
}
