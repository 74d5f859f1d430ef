// Runs a pass that replays.py wrote, on one instruction set after the other, and prints a digest of all its memory.
//
//     replay LIBRARY THREADS FILE...        prints lines of: instruction set, file, digest
//
// Every piece of memory ends where a page ends, and the next page is nobody's: who reads or writes on is killed.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "pilotfish/op.h"

struct Address {
  int64_t where, piece, shift;
};

struct Piece {
  std::vector<uint8_t> before;
  std::vector<Address> addresses;
};

struct NamedRecord {
  std::string name;
  std::vector<uint8_t> record;
  std::vector<Address> addresses;
};

// One file.
class Reader {
 public:
  explicit Reader(const char* path) {
    FILE* file = fopen(path, "rb");
    if (!file) fail(path);
    uint8_t buffer[1 << 16];
    for (size_t n; (n = fread(buffer, 1, sizeof(buffer), file));) data_.insert(data_.end(), buffer, buffer + n);
    fclose(file);
  }
  int64_t word() {
    int64_t value;
    memcpy(&value, take(8), 8);
    return value;
  }
  std::vector<uint8_t> bytes() {
    const int64_t count = word();
    const uint8_t* from = take((count + 7) / 8 * 8);
    return std::vector<uint8_t>(from, from + count);
  }
  std::vector<Address> addresses() {
    std::vector<Address> found(word());
    for (Address& one : found) {
      one.where = word();
      one.piece = word();
      one.shift = word();
    }
    return found;
  }

 private:
  static void fail(const char* what) {
    fprintf(stderr, "%s: no such file, or it ends too soon\n", what);
    exit(2);
  }
  const uint8_t* take(int64_t count) {
    if (at_ + count > (int64_t)data_.size()) fail("a replay");
    at_ += count;
    return data_.data() + at_ - count;
  }
  std::vector<uint8_t> data_;
  int64_t at_ = 0;
};

// Memory whose end is a page's end. Never given back: there is little of it.
static uint8_t* guarded(size_t count) {
  const size_t page = sysconf(_SC_PAGESIZE), held = (count + page - 1) / page * page;
  uint8_t* made = (uint8_t*)mmap(nullptr, held + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made == MAP_FAILED || mprotect(made + held, page, PROT_NONE)) abort();
  return made + held - count;
}

static void set(uint8_t* memory, const std::vector<Address>& addresses, const std::vector<uint8_t*>& pieces) {
  for (const Address& one : addresses) {
    const uint8_t* leads = pieces[one.piece] + one.shift;
    memcpy(memory + one.where, &leads, 8);
  }
}

// As replays.py has it.
static uint64_t digest_of(const uint8_t* memory, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i * 8 < count; i++) {
    uint64_t word = 0;
    memcpy(&word, memory + i * 8, count - i * 8 < 8 ? count - i * 8 : 8);
    sum += word * ((2 * i + 1) * 0x9e3779b97f4a7c15);
  }
  return sum;
}

template <typename Function>
static Function found(void* library, const char* name) {
  void* address = dlsym(library, name);
  if (address) return (Function)address;
  fprintf(stderr, "the library has no %s\n", name);
  exit(2);
}

int main(int count, char** words) {
  if (count < 4) {
    fprintf(stderr, "wanted: replay LIBRARY THREADS FILE...\n");
    return 2;
  }
  void* library = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const auto find = found<pf_function (*)(int32_t, const char*)>(library, "pf_find");
  const auto run = found<void (*)(const pf_call*, int64_t, int32_t)>(library, "pf_run");
  const auto name = found<const char* (*)(int32_t)>(library, "pf_instruction_set");
  const auto is_here = found<int32_t (*)(int32_t)>(library, "pf_has_instruction_set");
  for (int file = 3; file < count; file++) {
    Reader reader(words[file]);
    std::vector<Piece> pieces(reader.word());
    for (Piece& piece : pieces) {
      piece.before = reader.bytes();
      piece.addresses = reader.addresses();
    }
    std::vector<NamedRecord> records(reader.word());
    for (NamedRecord& one : records) {
      const std::vector<uint8_t> text = reader.bytes();
      one.name.assign(text.begin(), text.end());
      one.record = reader.bytes();
      one.addresses = reader.addresses();
    }
    for (int32_t set_number = 0; name(set_number); set_number++) {
      if (!is_here(set_number)) continue;
      std::vector<uint8_t*> memory;
      for (const Piece& piece : pieces) memory.push_back(guarded(piece.before.size()));
      for (size_t i = 0; i < pieces.size(); i++) {
        if (!pieces[i].before.empty()) memcpy(memory[i], pieces[i].before.data(), pieces[i].before.size());
        set(memory[i], pieces[i].addresses, memory);
      }
      std::vector<pf_call> calls;
      for (const NamedRecord& one : records) {
        uint8_t* record = guarded((one.record.size() + 7) / 8 * 8);
        memcpy(record, one.record.data(), one.record.size());
        set(record, one.addresses, memory);
        const pf_function function = find(set_number, one.name.c_str());
        if (!function) {
          fprintf(stderr, "the library has no function %s\n", one.name.c_str());
          return 2;
        }
        calls.push_back({function, record});
      }
      run(calls.data(), (int64_t)calls.size(), atoi(words[2]));
      uint64_t digest = 0;
      for (size_t i = 0; i < pieces.size(); i++) {
        for (const Address& one : pieces[i].addresses) memset(memory[i] + one.where, 0, 8);
        digest = digest * 0x100000001b3 + digest_of(memory[i], pieces[i].before.size());
      }
      printf("%s %s %016llx\n", name(set_number), words[file], (unsigned long long)digest);
    }
  }
  return 0;
}
