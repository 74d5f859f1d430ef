// How a weight's numbers lie in memory, row by row, and how a run of a row's columns is decoded to float32.
//
// Knows: kinds of rows. Does not know: what they are multiplied with. Of finite scales each number is the one that
// the `gguf` package (or `kernels.int4`) gives in float32, but for the sign of a zero: scale * number is exact there, so
// fma(scale, number, low) is its sum.
#pragma once
#include "pilotfish/rows.h"

extern "C" {
// Float kinds come first, under the numbers of pf_dtype; then the blocks of GGUF files, then our INT4.
enum pf_kind {
  PF_Q4_0 = 3,
  PF_Q4_1 = 4,
  PF_Q5_0 = 5,
  PF_Q5_1 = 6,
  PF_Q8_0 = 7,
  PF_Q4_K = 8,
  PF_Q5_K = 9,
  PF_Q6_K = 10,
  PF_INT4 = 11
};

// Some outputs of a weight, all of one kind, where the file or a tensor has them.
// data: [outputs] rows, `row_bytes` bytes apart; memory is asked for `ahead` bytes before it is used.
// scale: INT4 only, [outputs, K / group_size] of `scale_dtype`.
typedef struct pf_weight_part {
  const void* data;
  const void* scale;
  int64_t kind, outputs, row_bytes, ahead;
  int64_t scale_dtype, group_size;
} pf_weight_part;
}

namespace pilotfish {
namespace PF_ISA {

// Columns that are decoded at once.
constexpr int64_t CHUNK = 512;

PF_INLINE int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
PF_INLINE void ask_for(const pf_weight_part* part, const void* p) {
  __builtin_prefetch((const char*)p + part->ahead, 0, 2);
}

PF_INLINE float half(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
#if defined(__ARM_NEON)
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(bits))), 0);
#else
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
#endif
}

// 0, 1, 2, ... 15 as floats, from `first` on.
PF_INLINE Floats counting(int32_t first = 0) { return to_floats(lane_numbers() + all_ints(first)); }
// To be called on an array that was filled with wide stores: its elements are then read as they are needed, where the
// compiler would keep them in registers and shuffle each into place.
PF_INLINE void leave_in_memory(const void* p) { __asm__ volatile("" : : "r"(p) : "memory"); }

// The lanes whose bit of `bits` is set.
PF_INLINE Mask lanes_of(uint32_t bits) {
#if defined(__AVX512F__)
  return {(__mmask16)bits};
#else
  alignas(64) static const int32_t lane_bit[LANES] = {
      1 << 0, 1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
      1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15,
  };
  return less(all_ints(0), all_ints((int32_t)(bits & 0xffff)) & load_ints(lane_bit));
#endif
}
PF_INLINE Floats number(Floats scale, Ints q, Floats low) { return fma(scale, to_floats(q), low); }

// Numbers of four bits under one scale: fma(scale, q + FIRST, low), of which one of FIRST and low is zero.
template <int FIRST> struct Nibbles {
#if defined(__AVX512F__)
  Floats values;  // of all sixteen
  PF_INLINE Nibbles of(Floats scale, Floats low) { return {fma(scale, counting(FIRST), low)}; }
  // Of sixteen bytes: the numbers in their low halves, and in their high ones.
  Floats low(Ints bytes) const { return {_mm512_permutexvar_ps(bytes.v, values.v)}; }  // reads the low four bits
  Floats high(Ints bytes) const { return low(shift_right<4>(bytes)); }
#else
  Floats scale, added;
  PF_INLINE Nibbles of(Floats scale, Floats low) { return {scale, low}; }
  Floats low(Ints bytes) const { return number(scale, (bytes & all_ints(15)) + all_ints(FIRST), added); }
  Floats high(Ints bytes) const { return number(scale, shift_right<4>(bytes) + all_ints(FIRST), added); }
#endif
};

// --- Each kind's reader goes through N rows side by side, columns `column` (a multiple of 256) to column + columns,
// and hands what it decodes to take(row, k, sixteen numbers from column + k on), k ascending for each row.

// Blocks of 32 columns: a scale and, of some, a low end in half precision, perhaps a fifth bit of each number, numbers.
template <int KIND> struct Blocks {
  static constexpr bool HAS_LOW = KIND == PF_Q4_1 || KIND == PF_Q5_1;
  static constexpr bool HAS_FIFTH = KIND == PF_Q5_0 || KIND == PF_Q5_1;
  static constexpr int64_t FIFTH = HAS_LOW ? 4 : 2;
  static constexpr int64_t NUMBERS = FIFTH + (HAS_FIFTH ? 4 : 0);
  static constexpr int64_t BYTES = NUMBERS + (KIND == PF_Q8_0 ? 32 : 16);

  template <int N, typename Take>
  PF_INLINE void read(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                      Take take) {
    const int64_t num_blocks = columns / 32, start = column / 32 * BYTES;
    float heads[N][CHUNK / 32][4];  // scale, low end, and what follows
    for (int o = 0; o < N; o++) {
      for (int64_t i = 0; i < num_blocks; i++) widen_four_halves(rows[o] + start + i * BYTES, heads[o][i]);
    }
    leave_in_memory(heads);
    for (int64_t i = 0; i < num_blocks; i++) {
      for (int o = 0; o < N; o++) {
        const uint8_t* block = rows[o] + start + i * BYTES;
        const uint8_t* numbers = block + NUMBERS;
        ask_for(part, numbers);
        const Floats d = all(heads[o][i][0]);
        if constexpr (KIND == PF_Q8_0) {
          take(o, i * 32, d * to_floats(widen_i8((const int8_t*)numbers)));
          take(o, i * 32 + 16, d * to_floats(widen_i8((const int8_t*)numbers + 16)));
        } else if constexpr (HAS_FIFTH) {
          uint32_t fifth;
          memcpy(&fifth, block + FIFTH, 4);
          const Floats m = HAS_LOW ? all(heads[o][i][1]) : d * all(-16.0f);
          const Ints pair = widen_u8(numbers), sixteen = all_ints(16);
          take(o, i * 32, number(d, or_where(lanes_of(fifth), pair & all_ints(15), sixteen), m));
          take(o, i * 32 + 16, number(d, or_where(lanes_of(fifth >> 16), shift_right<4>(pair), sixteen), m));
        } else {
          const auto values = Nibbles<HAS_LOW ? 0 : -8>::of(d, HAS_LOW ? all(heads[o][i][1]) : zero());
          const Ints pair = widen_u8(numbers);
          take(o, i * 32, values.low(pair));
          take(o, i * 32 + 16, values.high(pair));
        }
      }
    }
  }
};

// Of a Q5_K block, sub-blocks i and i + 1, a number of five bits to a byte.
// high: 32 bytes of fifth bits, then those of low halves.
#if defined(__AVX512F__)
PF_INLINE __m512i twice(const uint8_t* bytes) {
  return _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i*)bytes));
}
PF_INLINE void add_fifths(const uint8_t* high, int i, uint8_t* five) {
  const __m512i shift = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
  const __m512i bit = _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << i)), _mm256_set1_epi8((char)(2 << i)), 1);
  const __m512i four = _mm512_and_si512(_mm512_srlv_epi16(twice(high + 32 + i * 16), shift), _mm512_set1_epi8(15));
  const __mmask64 fifth = _mm512_test_epi8_mask(twice(high), bit);
  _mm512_storeu_si512(five, _mm512_mask_add_epi8(four, fifth, four, _mm512_set1_epi8(16)));
}
#else
static __attribute__((noinline)) void add_fifths(const uint8_t* high, int i, uint8_t* __restrict five) {
  const uint8_t* numbers = high + 32 + i * 16;
  const uint8_t bit = (uint8_t)(1 << i), next = (uint8_t)(2 << i);
  for (int j = 0; j < 32; j++) {
    five[j] = (uint8_t)((numbers[j] & 15) + (high[j] & bit ? 16 : 0));
    five[32 + j] = (uint8_t)((numbers[j] >> 4) + (high[j] & next ? 16 : 0));
  }
}
#endif

// Blocks of 256 columns, 64 at a time: eight scales and eight low ends of six bits in twelve bytes.
template <int KIND> struct KBlocks {
  static constexpr int64_t HIGH_BYTES = KIND == PF_Q5_K ? 32 : 0, BYTES = 16 + HIGH_BYTES + 128;

  // Eight scales, then eight negative low ends.
  PF_INLINE void read_scales(const uint8_t* block, float* scale) {
    uint32_t packed[3], six[4];
    memcpy(packed, block + 4, 12);
    six[0] = packed[0] & 0x3f3f3f3f;
    six[1] = (packed[2] & 0x0f0f0f0f) | ((packed[0] >> 2) & 0x30303030);
    six[2] = packed[1] & 0x3f3f3f3f;
    six[3] = ((packed[2] >> 4) & 0x0f0f0f0f) | ((packed[1] >> 2) & 0x30303030);
    const Mask is_scale = less(lane_numbers(), all_ints(8));
    store(scale, select(is_scale, all(half(block)), all(-half(block + 2))) * to_floats(widen_u8((const uint8_t*)six)));
  }

  template <int N, typename Take>
  PF_INLINE void read(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                      Take take) {
    for (int64_t done = 0; done < columns; done += 256) {
      const int64_t start = (column + done) / 256 * BYTES;
      float scale[N][LANES];
      for (int o = 0; o < N; o++) read_scales(rows[o] + start, scale[o]);
      leave_in_memory(scale);
      for (int i = 0; i < 8; i += 2) {
        uint8_t five[N][64];
        if constexpr (KIND == PF_Q5_K) {
          for (int o = 0; o < N; o++) add_fifths(rows[o] + start + 16, i, five[o]);
          leave_in_memory(five);
        }
        for (int o = 0; o < N; o++) {
          const uint8_t* numbers = rows[o] + start + 16 + HIGH_BYTES + i * 16;
          ask_for(part, numbers);
          const Floats d0 = all(scale[o][i]), m0 = all(scale[o][8 + i]);
          const Floats d1 = all(scale[o][i + 1]), m1 = all(scale[o][9 + i]);
          const int64_t k = done + i * 32;
          if constexpr (KIND == PF_Q4_K) {
            const auto low = Nibbles<0>::of(d0, m0), high = Nibbles<0>::of(d1, m1);
            const Ints first = widen_u8(numbers), second = widen_u8(numbers + 16);
            take(o, k, low.low(first));
            take(o, k + 16, low.low(second));
            take(o, k + 32, high.high(first));
            take(o, k + 48, high.high(second));
          } else {
            take(o, k, number(d0, widen_u8(five[o]), m0));
            take(o, k + 16, number(d0, widen_u8(five[o] + 16), m0));
            take(o, k + 32, number(d1, widen_u8(five[o] + 32), m1));
            take(o, k + 48, number(d1, widen_u8(five[o] + 48), m1));
          }
        }
      }
    }
  }
};

// 256 columns: 128 bytes of low halves, 64 of two high bits, sixteen scales of a byte, one in half precision.
struct Q6KBlocks {
  // To a byte each, from 0 to 63.
  PF_INLINE void read_numbers(const pf_weight_part* part, const uint8_t* block, uint8_t* six) {
    for (int i = 0; i < 2; i++) {
      const uint8_t *low = block + i * 64, *high = block + 128 + i * 32;
      uint8_t* to = six + i * 128;
      ask_for(part, low);
      ask_for(part, high);
#if defined(__AVX512F__)
      const __m512i both = twice(high), four = _mm512_loadu_si512(low);
      const __m512i up = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
      const __m512i down = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
      const __m512i top = _mm512_set1_epi8(48), bottom = _mm512_set1_epi8(15);
      const __m512i first = _mm512_and_si512(_mm512_sllv_epi16(both, up), top);
      const __m512i second = _mm512_and_si512(_mm512_srlv_epi16(both, down), top);
      _mm512_storeu_si512(to, _mm512_or_si512(first, _mm512_and_si512(four, bottom)));
      _mm512_storeu_si512(to + 64, _mm512_or_si512(second, _mm512_and_si512(_mm512_srli_epi16(four, 4), bottom)));
#else
      for (int j = 0; j < 32; j++) {
        to[j] = (uint8_t)((low[j] & 15) | (high[j] << 4 & 48));
        to[32 + j] = (uint8_t)((low[32 + j] & 15) | (high[j] << 2 & 48));
        to[64 + j] = (uint8_t)(low[j] >> 4 | (high[j] & 48));
        to[96 + j] = (uint8_t)(low[32 + j] >> 4 | (high[j] >> 2 & 48));
      }
#endif
    }
  }

  template <int N, typename Take>
  PF_INLINE void read(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                      Take take) {
    for (int64_t done = 0; done < columns; done += 256) {
      float scale[N][LANES], low[N][LANES];
      uint8_t six[N][256];
      for (int o = 0; o < N; o++) {
        const uint8_t* block = rows[o] + (column + done) / 256 * 210;
        const Floats d = all(half(block + 208)) * to_floats(widen_i8((const int8_t*)block + 192));
        store(scale[o], d);
        store(low[o], d * all(-32.0f));
        read_numbers(part, block, six[o]);
      }
      leave_in_memory(six);
      leave_in_memory(scale);
      leave_in_memory(low);
      for (int i = 0; i < 16; i++) {
        for (int o = 0; o < N; o++) {
          take(o, done + i * LANES, number(all(scale[o][i]), widen_u8(six[o] + i * LANES), all(low[o][i])));
        }
      }
    }
  }
};

PF_INLINE float scale_at(const void* scale, int64_t dtype, int64_t i) {
  if (dtype == PF_FLOAT32) return ((const float*)scale)[i];
  if (dtype == PF_FLOAT16) return half((const uint8_t*)scale + 2 * i);
  uint32_t bits = (uint32_t)((const uint16_t*)scale)[i] << 16;
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Numbers of INT4 words, one to a byte, and eight zeros.
static __attribute__((noinline)) void read_int4(const pf_weight_part* part, const uint8_t* bytes, int64_t columns,
                                                int8_t* __restrict numbers) {
  for (int64_t k = 0; k < columns; k += 128) ask_for(part, bytes + k / 2);
  for (int64_t i = 0; i < columns / 2; i++) {
    numbers[2 * i] = (int8_t)((bytes[i] & 15) - 8);
    numbers[2 * i + 1] = (int8_t)((bytes[i] >> 4) - 8);
  }
  memset(numbers + columns, 0, 8);
}

// Words of eight columns; a scale for each group of some multiple of eight.
struct Int4Words {
  // One for every STEP columns, at scale[0], scale[STEP / 8], ...
  template <int STEP>
  PF_INLINE void read_scales(const pf_weight_part* part, int64_t output, int64_t column, int64_t columns,
                             float* scale) {
    const int64_t size = part->group_size, groups = part->row_bytes * 2 / size;
    int64_t i = output * groups + column / size, left = size - column % size;
    float value = scale_at(part->scale, part->scale_dtype, i);
    for (int64_t k = 0; k < columns; k += STEP, left -= STEP) {
      if (left == 0) {
        value = scale_at(part->scale, part->scale_dtype, ++i);
        left = size;
      }
      scale[k / 8] = value;
    }
  }

  template <int N, typename Take>
  PF_INLINE void read(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                      Take take) {
    const bool is_simple = part->group_size % LANES == 0;  // then sixteen columns have one scale
    int8_t numbers[N][CHUNK + 8];
    float scale[N][CHUNK / 8 + 1];
    for (int o = 0; o < N; o++) {
      const int64_t output = (rows[o] - (const uint8_t*)part->data) / part->row_bytes;
      read_int4(part, rows[o] + column / 2, columns, numbers[o]);
      scale[o][columns / 8] = 0.0f;
      if (is_simple) read_scales<LANES>(part, output, column, columns, scale[o]);
      else read_scales<8>(part, output, column, columns, scale[o]);
    }
    leave_in_memory(numbers);
    leave_in_memory(scale);
    const Mask is_first = less(lane_numbers(), all_ints(8));
    for (int64_t k = 0; k < columns; k += LANES) {
      for (int o = 0; o < N; o++) {
        Floats d = all(scale[o][k / 8]);
        if (!is_simple) d = select(is_first, d, all(scale[o][k / 8 + 1]));
        take(o, k, d * to_floats(widen_i8(numbers[o] + k)));
      }
    }
  }
};

template <int DTYPE> struct FloatRows {
  template <int N, typename Take>
  PF_INLINE void read(const pf_weight_part* part, const uint8_t* const* rows, int64_t column, int64_t columns,
                      Take take) {
    using Type = typename Element<DTYPE>::Type;
    int64_t k = 0;
    for (; k + LANES <= columns; k += LANES) {
      for (int o = 0; o < N; o++) {
        const Type* x = (const Type*)rows[o] + column + k;
        ask_for(part, x);
        take(o, k, pilotfish::PF_ISA::read<DTYPE>(x));
      }
    }
    if (k == columns) return;
    for (int o = 0; o < N; o++) take(o, k, read_some<DTYPE>((const Type*)rows[o] + column + k, columns - k));
  }
};

// Calls `body` with the reader of a kind, as a value of its type.
template <typename Body>
PF_INLINE void with_reader(int64_t kind, Body body) {
  switch (kind) {
    case PF_FLOAT32: return body(FloatRows<PF_FLOAT32>());
    case PF_BFLOAT16: return body(FloatRows<PF_BFLOAT16>());
    case PF_FLOAT16: return body(FloatRows<PF_FLOAT16>());
    case PF_Q4_0: return body(Blocks<PF_Q4_0>());
    case PF_Q4_1: return body(Blocks<PF_Q4_1>());
    case PF_Q5_0: return body(Blocks<PF_Q5_0>());
    case PF_Q5_1: return body(Blocks<PF_Q5_1>());
    case PF_Q8_0: return body(Blocks<PF_Q8_0>());
    case PF_Q4_K: return body(KBlocks<PF_Q4_K>());
    case PF_Q5_K: return body(KBlocks<PF_Q5_K>());
    case PF_Q6_K: return body(Q6KBlocks());
    default: return body(Int4Words());
  }
}

// Writes `columns` numbers of `row` from `column` on (a multiple of 256), and zeros up to a multiple of 16.
typedef void (*Decode)(const pf_weight_part* part, const uint8_t* row, int64_t column, int64_t columns, float* out);

template <typename Reader>
static void decode_row(const pf_weight_part* part, const uint8_t* row, int64_t column, int64_t columns, float* out) {
  const auto take = [=](int, int64_t k, Floats numbers) __attribute__((always_inline)) { store(out + k, numbers); };
  Reader::template read<1>(part, &row, column, columns, take);
}
static Decode decoder_of(int64_t kind) {
  Decode found = nullptr;
  with_reader(kind, [&](auto reader) { found = decode_row<decltype(reader)>; });
  return found;
}

}  // namespace PF_ISA
}  // namespace pilotfish
