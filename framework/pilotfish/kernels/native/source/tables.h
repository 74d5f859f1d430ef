// The tables of functions, one an instruction set, and how a function is found in one. Knows no processor.
#pragma once
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
#else
extern const pf_named_function pf_table_neon[];
#endif
}

namespace pilotfish {

// The function of that name, or null.
inline pf_function find(const pf_named_function* table, const char* name) {
  for (; table->name; table++) {
    if (strcmp(table->name, name) == 0) return table->function;
  }
  return nullptr;
}

}  // namespace pilotfish

// Which sources this was compiled from; building.py looks for the words in the file.
PF_API const char* pf_sources() { return "pilotfish sources " PF_SOURCES; }

// What op.h declares, as a number; a plugin's library must have the core's.
PF_API int32_t pf_interface() { return PF_INTERFACE; }
