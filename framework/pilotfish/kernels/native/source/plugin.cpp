// What a plugin's library has instead of main.cpp: functions by the names of their instruction set and their own.
// The core asks the processor, and runs them with its threads.
#include "tables.h"

namespace {

struct InstructionSet {
  const char* name;
  const pf_named_function* table;
};
const InstructionSet SETS[] = {
#if defined(__x86_64__)
    {"avx512", pf_table_avx512},
    {"avx2", pf_table_avx2},
#else
    {"neon", pf_table_neon},
#endif
};

}  // namespace

// The function of that name, compiled for that instruction set; null where there is none.
PF_API pf_function pf_find_in(const char* instruction_set, const char* name) {
  for (const InstructionSet& set : SETS) {
    if (strcmp(set.name, instruction_set) == 0) return pilotfish::find(set.table, name);
  }
  return nullptr;
}
