// Floats: sixteen float32 lanes, whatever the registers are: one of AVX-512, two of AVX2, four of NEON.
//
// Every operation is exactly rounded or defined bit by bit, so that a kernel written with it gives the same bits on
// each instruction set. What would not (a reduction in the machine's own order, an approximate reciprocal, a fused
// operation that is not written as one) is not here. Compiled with -ffp-contract=off.
#pragma once
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#else
#error "pilotfish kernels are compiled for AVX2 with FMA and F16C, AVX-512, or NEON"
#endif

#ifndef PF_ISA
#error "PF_ISA names the namespace of this instruction set: avx2, avx512 or neon"
#endif

#define PF_INLINE static inline __attribute__((always_inline))
// For members, which are not `static inline`.
#define PF_FORCED inline __attribute__((always_inline))

namespace pilotfish {
namespace PF_ISA {

constexpr int LANES = 16;

// clang-format off
#if defined(__AVX512F__)

struct Floats { __m512 v; };
struct Ints { __m512i v; };
struct Mask { __mmask16 v; };

PF_INLINE Floats zero() { return {_mm512_setzero_ps()}; }
PF_INLINE Floats all(float x) { return {_mm512_set1_ps(x)}; }
PF_INLINE Ints all_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
PF_INLINE Ints lane_numbers() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
PF_INLINE Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
PF_INLINE void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
PF_INLINE Ints load_ints(const void* p) { return {_mm512_loadu_si512(p)}; }
PF_INLINE void store_ints(void* p, Ints x) { _mm512_storeu_si512(p, x.v); }
PF_INLINE Ints widen_u16(const uint16_t* p) { return {_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p))}; }
PF_INLINE Ints widen_u8(const uint8_t* p) { return {_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
PF_INLINE Ints widen_i8(const int8_t* p) { return {_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p))}; }
PF_INLINE void narrow_u16(uint16_t* p, Ints x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(x.v)); }
PF_INLINE Floats load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
PF_INLINE void store_f16(uint16_t* p, Floats x) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT)); }

PF_INLINE Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
PF_INLINE Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
PF_INLINE Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
PF_INLINE Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
PF_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
PF_INLINE Floats square_root(Floats x) { return {_mm512_sqrt_ps(x.v)}; }
PF_INLINE Floats round_to_int(Floats x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
PF_INLINE Floats larger(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
PF_INLINE Floats smaller(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
PF_INLINE Floats to_floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
PF_INLINE Ints to_ints(Floats x) { return {_mm512_cvtps_epi32(x.v)}; }
PF_INLINE Floats bits_as_floats(Ints x) { return {_mm512_castsi512_ps(x.v)}; }
PF_INLINE Ints bits_as_ints(Floats x) { return {_mm512_castps_si512(x.v)}; }
PF_INLINE Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
PF_INLINE Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
PF_INLINE Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
PF_INLINE Ints operator|(Ints a, Ints b) { return {_mm512_or_si512(a.v, b.v)}; }
PF_INLINE Ints operator^(Ints a, Ints b) { return {_mm512_xor_si512(a.v, b.v)}; }
template <int N> PF_INLINE Ints shift_left(Ints x) { return {_mm512_slli_epi32(x.v, N)}; }
template <int N> PF_INLINE Ints shift_right(Ints x) { return {_mm512_srli_epi32(x.v, N)}; }
template <int N> PF_INLINE Ints shift_right_signed(Ints x) { return {_mm512_srai_epi32(x.v, N)}; }
PF_INLINE Mask less(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
PF_INLINE Mask is_nan(Floats a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
PF_INLINE Mask less(Ints a, Ints b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
PF_INLINE Floats select(Mask m, Floats yes, Floats no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
PF_INLINE Ints select(Mask m, Ints yes, Ints no) { return {_mm512_mask_blend_epi32(m.v, no.v, yes.v)}; }
// x | y where a lane of m is set, else x.
PF_INLINE Ints or_where(Mask m, Ints x, Ints y) { return {_mm512_mask_or_epi32(x.v, m.v, x.v, y.v)}; }
PF_INLINE Mask operator&(Mask a, Mask b) { return {(__mmask16)(a.v & b.v)}; }
PF_INLINE Mask operator|(Mask a, Mask b) { return {(__mmask16)(a.v | b.v)}; }

// lane l + lane l + 8, then + 4, + 2, + 1: the tree of every reduction here.
PF_INLINE float tree_sum(Floats x) {
  __m256 half = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#elif defined(__AVX2__)

struct Floats { __m256 a, b; };
struct Ints { __m256i a, b; };
struct Mask { __m256 a, b; };

PF_INLINE Floats zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
PF_INLINE Floats all(float x) { __m256 v = _mm256_set1_ps(x); return {v, v}; }
PF_INLINE Ints all_ints(int32_t x) { __m256i v = _mm256_set1_epi32(x); return {v, v}; }
PF_INLINE Ints lane_numbers() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)}; }
PF_INLINE Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
PF_INLINE void store(float* p, Floats x) { _mm256_storeu_ps(p, x.a); _mm256_storeu_ps(p + 8, x.b); }
PF_INLINE Ints load_ints(const void* p) { return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)p + 1)}; }
PF_INLINE void store_ints(void* p, Ints x) { _mm256_storeu_si256((__m256i*)p, x.a); _mm256_storeu_si256((__m256i*)p + 1, x.b); }
PF_INLINE Ints widen_u16(const uint16_t* p) { return {_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p + 1))}; }
PF_INLINE Ints widen_u8(const uint8_t* p) { return {_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))}; }
PF_INLINE Ints widen_i8(const int8_t* p) { return {_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)), _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)(p + 8)))}; }
PF_INLINE void narrow_u16(uint16_t* p, Ints x) {
  const __m256i low = _mm256_set1_epi32(0xffff);
  __m256i both = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
  _mm256_storeu_si256((__m256i*)p, _mm256_permute4x64_epi64(both, 0xd8));
}
PF_INLINE Floats load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + 1))}; }
PF_INLINE void store_f16(uint16_t* p, Floats x) {
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128((__m128i*)p + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

#define PF_BOTH(result, call) return result{call(x.a), call(x.b)}
PF_INLINE Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
PF_INLINE Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
PF_INLINE Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
PF_INLINE Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
PF_INLINE Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
PF_INLINE Floats square_root(Floats x) { PF_BOTH(Floats, _mm256_sqrt_ps); }
PF_INLINE Floats round_to_int(Floats x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
PF_INLINE Floats larger(Floats a, Floats b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
PF_INLINE Floats smaller(Floats a, Floats b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
PF_INLINE Floats to_floats(Ints x) { PF_BOTH(Floats, _mm256_cvtepi32_ps); }
PF_INLINE Ints to_ints(Floats x) { PF_BOTH(Ints, _mm256_cvtps_epi32); }
PF_INLINE Floats bits_as_floats(Ints x) { PF_BOTH(Floats, _mm256_castsi256_ps); }
PF_INLINE Ints bits_as_ints(Floats x) { PF_BOTH(Ints, _mm256_castps_si256); }
PF_INLINE Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
PF_INLINE Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.a, b.a), _mm256_sub_epi32(a.b, b.b)}; }
PF_INLINE Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.a, b.a), _mm256_and_si256(a.b, b.b)}; }
PF_INLINE Ints operator|(Ints a, Ints b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
PF_INLINE Ints operator^(Ints a, Ints b) { return {_mm256_xor_si256(a.a, b.a), _mm256_xor_si256(a.b, b.b)}; }
template <int N> PF_INLINE Ints shift_left(Ints x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
template <int N> PF_INLINE Ints shift_right(Ints x) { return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)}; }
template <int N> PF_INLINE Ints shift_right_signed(Ints x) { return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)}; }
PF_INLINE Mask less(Floats a, Floats b) { return {_mm256_cmp_ps(a.a, b.a, _CMP_LT_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_LT_OQ)}; }
PF_INLINE Mask is_nan(Floats a) { return {_mm256_cmp_ps(a.a, a.a, _CMP_UNORD_Q), _mm256_cmp_ps(a.b, a.b, _CMP_UNORD_Q)}; }
PF_INLINE Mask less(Ints a, Ints b) { return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(b.a, a.a)), _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.b, a.b))}; }
PF_INLINE Floats select(Mask m, Floats yes, Floats no) { return {_mm256_blendv_ps(no.a, yes.a, m.a), _mm256_blendv_ps(no.b, yes.b, m.b)}; }
PF_INLINE Ints select(Mask m, Ints yes, Ints no) { return bits_as_ints(select(m, bits_as_floats(yes), bits_as_floats(no))); }
PF_INLINE Ints or_where(Mask m, Ints x, Ints y) { return x | (Ints{_mm256_castps_si256(m.a), _mm256_castps_si256(m.b)} & y); }
PF_INLINE Mask operator&(Mask a, Mask b) { return {_mm256_and_ps(a.a, b.a), _mm256_and_ps(a.b, b.b)}; }
PF_INLINE Mask operator|(Mask a, Mask b) { return {_mm256_or_ps(a.a, b.a), _mm256_or_ps(a.b, b.b)}; }
#undef PF_BOTH

PF_INLINE float tree_sum(Floats x) {
  __m256 half = _mm256_add_ps(x.a, x.b);
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  __m128 two = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#else  // NEON

struct Floats { float32x4_t q[4]; };
struct Ints { int32x4_t q[4]; };
struct Mask { uint32x4_t q[4]; };

#define PF_EACH(type, expression) type r; for (int i = 0; i < 4; i++) r.q[i] = expression; return r
PF_INLINE Floats all(float x) { PF_EACH(Floats, vdupq_n_f32(x)); }
PF_INLINE Floats zero() { return all(0.0f); }
PF_INLINE Ints all_ints(int32_t x) { PF_EACH(Ints, vdupq_n_s32(x)); }
PF_INLINE Ints lane_numbers() { static const int32_t first[4] = {0, 1, 2, 3}; PF_EACH(Ints, vaddq_s32(vld1q_s32(first), vdupq_n_s32(4 * i))); }
PF_INLINE Floats load(const float* p) { PF_EACH(Floats, vld1q_f32(p + 4 * i)); }
PF_INLINE void store(float* p, Floats x) { for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.q[i]); }
PF_INLINE Ints load_ints(const void* p) { PF_EACH(Ints, vreinterpretq_s32_u8(vld1q_u8((const uint8_t*)p + 16 * i))); }
PF_INLINE void store_ints(void* p, Ints x) { for (int i = 0; i < 4; i++) vst1q_u8((uint8_t*)p + 16 * i, vreinterpretq_u8_s32(x.q[i])); }
PF_INLINE Ints widen_u16(const uint16_t* p) { PF_EACH(Ints, vreinterpretq_s32_u32(vmovl_u16(vld1_u16(p + 4 * i)))); }
PF_INLINE Ints widen_u8(const uint8_t* p) {
  uint8x16_t b = vld1q_u8(p); uint16x8_t low = vmovl_u8(vget_low_u8(b)), high = vmovl_u8(vget_high_u8(b));
  return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
           vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
}
PF_INLINE Ints widen_i8(const int8_t* p) {
  int8x16_t b = vld1q_s8(p); int16x8_t low = vmovl_s8(vget_low_s8(b)), high = vmovl_s8(vget_high_s8(b));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)), vmovl_s16(vget_high_s16(high))}};
}
PF_INLINE void narrow_u16(uint16_t* p, Ints x) { for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vmovn_u32(vreinterpretq_u32_s32(x.q[i]))); }
PF_INLINE Floats load_f16(const uint16_t* p) { PF_EACH(Floats, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)))); }
PF_INLINE void store_f16(uint16_t* p, Floats x) { for (int i = 0; i < 4; i++) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.q[i]))); }

PF_INLINE Floats operator+(Floats a, Floats b) { PF_EACH(Floats, vaddq_f32(a.q[i], b.q[i])); }
PF_INLINE Floats operator-(Floats a, Floats b) { PF_EACH(Floats, vsubq_f32(a.q[i], b.q[i])); }
PF_INLINE Floats operator*(Floats a, Floats b) { PF_EACH(Floats, vmulq_f32(a.q[i], b.q[i])); }
PF_INLINE Floats operator/(Floats a, Floats b) { PF_EACH(Floats, vdivq_f32(a.q[i], b.q[i])); }
PF_INLINE Floats fma(Floats a, Floats b, Floats c) { PF_EACH(Floats, vfmaq_f32(c.q[i], a.q[i], b.q[i])); }
PF_INLINE Floats square_root(Floats x) { PF_EACH(Floats, vsqrtq_f32(x.q[i])); }
PF_INLINE Floats round_to_int(Floats x) { PF_EACH(Floats, vrndnq_f32(x.q[i])); }
// As x86 has it: the second operand where the two are equal or one is no number.
PF_INLINE Floats larger(Floats a, Floats b) { PF_EACH(Floats, vbslq_f32(vcgtq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
PF_INLINE Floats smaller(Floats a, Floats b) { PF_EACH(Floats, vbslq_f32(vcltq_f32(a.q[i], b.q[i]), a.q[i], b.q[i])); }
PF_INLINE Floats to_floats(Ints x) { PF_EACH(Floats, vcvtq_f32_s32(x.q[i])); }
PF_INLINE Ints to_ints(Floats x) { PF_EACH(Ints, vcvtnq_s32_f32(x.q[i])); }
PF_INLINE Floats bits_as_floats(Ints x) { PF_EACH(Floats, vreinterpretq_f32_s32(x.q[i])); }
PF_INLINE Ints bits_as_ints(Floats x) { PF_EACH(Ints, vreinterpretq_s32_f32(x.q[i])); }
PF_INLINE Ints operator+(Ints a, Ints b) { PF_EACH(Ints, vaddq_s32(a.q[i], b.q[i])); }
PF_INLINE Ints operator-(Ints a, Ints b) { PF_EACH(Ints, vsubq_s32(a.q[i], b.q[i])); }
PF_INLINE Ints operator&(Ints a, Ints b) { PF_EACH(Ints, vandq_s32(a.q[i], b.q[i])); }
PF_INLINE Ints operator|(Ints a, Ints b) { PF_EACH(Ints, vorrq_s32(a.q[i], b.q[i])); }
PF_INLINE Ints operator^(Ints a, Ints b) { PF_EACH(Ints, veorq_s32(a.q[i], b.q[i])); }
template <int N> PF_INLINE Ints shift_left(Ints x) { PF_EACH(Ints, vshlq_n_s32(x.q[i], N)); }
template <int N> PF_INLINE Ints shift_right(Ints x) {
  if constexpr (N == 0) return x;
  else { PF_EACH(Ints, vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(x.q[i]), N))); }
}
template <int N> PF_INLINE Ints shift_right_signed(Ints x) {
  if constexpr (N == 0) return x;
  else { PF_EACH(Ints, vshrq_n_s32(x.q[i], N)); }
}
PF_INLINE Mask less(Floats a, Floats b) { PF_EACH(Mask, vcltq_f32(a.q[i], b.q[i])); }
PF_INLINE Mask is_nan(Floats a) { PF_EACH(Mask, vmvnq_u32(vceqq_f32(a.q[i], a.q[i]))); }
PF_INLINE Mask less(Ints a, Ints b) { PF_EACH(Mask, vcltq_s32(a.q[i], b.q[i])); }
PF_INLINE Floats select(Mask m, Floats yes, Floats no) { PF_EACH(Floats, vbslq_f32(m.q[i], yes.q[i], no.q[i])); }
PF_INLINE Ints select(Mask m, Ints yes, Ints no) { PF_EACH(Ints, vbslq_s32(m.q[i], yes.q[i], no.q[i])); }
PF_INLINE Ints or_where(Mask m, Ints x, Ints y) { PF_EACH(Ints, vorrq_s32(x.q[i], vandq_s32(vreinterpretq_s32_u32(m.q[i]), y.q[i]))); }
PF_INLINE Mask operator&(Mask a, Mask b) { PF_EACH(Mask, vandq_u32(a.q[i], b.q[i])); }
PF_INLINE Mask operator|(Mask a, Mask b) { PF_EACH(Mask, vorrq_u32(a.q[i], b.q[i])); }
#undef PF_EACH

PF_INLINE float tree_sum(Floats x) {
  float32x4_t low = vaddq_f32(x.q[0], x.q[2]), high = vaddq_f32(x.q[1], x.q[3]);
  float32x4_t quarter = vaddq_f32(low, high);
  float32x2_t two = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

#endif
// clang-format on

// The lanes in an order in which each can be added to those that `tree_sum` adds it to as soon as they are there. Its
// own inverse.
constexpr int LANE_ORDER[LANES] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

PF_INLINE Floats negative(Floats x) { return bits_as_floats(bits_as_ints(x) ^ all_ints(INT32_MIN)); }
PF_INLINE Floats magnitude(Floats x) { return bits_as_floats(bits_as_ints(x) & all_ints(INT32_MAX)); }

// Some lanes of Floats that one register holds, for loops that need many of them: PARTS of them are all lanes.
// clang-format off
#if defined(__AVX512F__)
typedef __m512 Part;
PF_INLINE Part load_part(const float* p) { return _mm512_loadu_ps(p); }
PF_INLINE void store_part(float* p, Part x) { _mm512_storeu_ps(p, x); }
PF_INLINE Part zero_part() { return _mm512_setzero_ps(); }
PF_INLINE Part all_part(const float* p) { return _mm512_set1_ps(*p); }
PF_INLINE Part add_part(Part a, Part b) { return _mm512_add_ps(a, b); }
PF_INLINE Part fma_part(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
// Four floats from p, then from p + distance, ... side by side.
PF_INLINE Part load_fours(const float* p, int64_t distance) {
  Part x = _mm512_castps128_ps512(_mm_loadu_ps(p));
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + distance), 1);
  x = _mm512_insertf32x4(x, _mm_loadu_ps(p + 2 * distance), 2);
  return _mm512_insertf32x4(x, _mm_loadu_ps(p + 3 * distance), 3);
}
// Each quarter i of x[0] to x[3] is a square of floats, turned.
PF_INLINE void turn_fours(Part* x) {
  const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(x[0], x[1])), high = _mm512_castps_pd(_mm512_unpackhi_ps(x[0], x[1]));
  const __m512d low2 = _mm512_castps_pd(_mm512_unpacklo_ps(x[2], x[3])), high2 = _mm512_castps_pd(_mm512_unpackhi_ps(x[2], x[3]));
  x[0] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, low2)); x[1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, low2));
  x[2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, high2)); x[3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, high2));
}
// x, in a register from here on: a compiler would rather load it again at every use.
PF_INLINE Part in_register(Part x) { __asm__("" : "+v"(x)); return x; }
#elif defined(__AVX2__)
typedef __m256 Part;
PF_INLINE Part load_part(const float* p) { return _mm256_loadu_ps(p); }
PF_INLINE void store_part(float* p, Part x) { _mm256_storeu_ps(p, x); }
PF_INLINE Part zero_part() { return _mm256_setzero_ps(); }
PF_INLINE Part all_part(const float* p) { return _mm256_broadcast_ss(p); }
PF_INLINE Part add_part(Part a, Part b) { return _mm256_add_ps(a, b); }
PF_INLINE Part fma_part(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
PF_INLINE Part load_fours(const float* p, int64_t distance) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + distance), 1);
}
PF_INLINE void turn_fours(Part* x) {
  const __m256d low = _mm256_castps_pd(_mm256_unpacklo_ps(x[0], x[1])), high = _mm256_castps_pd(_mm256_unpackhi_ps(x[0], x[1]));
  const __m256d low2 = _mm256_castps_pd(_mm256_unpacklo_ps(x[2], x[3])), high2 = _mm256_castps_pd(_mm256_unpackhi_ps(x[2], x[3]));
  x[0] = _mm256_castpd_ps(_mm256_unpacklo_pd(low, low2)); x[1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low, low2));
  x[2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high, high2)); x[3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high, high2));
}
PF_INLINE Part in_register(Part x) { __asm__("" : "+x"(x)); return x; }
#else
typedef float32x4_t Part;
PF_INLINE Part load_part(const float* p) { return vld1q_f32(p); }
PF_INLINE void store_part(float* p, Part x) { vst1q_f32(p, x); }
PF_INLINE Part zero_part() { return vdupq_n_f32(0.0f); }
PF_INLINE Part all_part(const float* p) { return vld1q_dup_f32(p); }
PF_INLINE Part add_part(Part a, Part b) { return vaddq_f32(a, b); }
PF_INLINE Part fma_part(Part a, Part b, Part c) { return vfmaq_f32(c, a, b); }
PF_INLINE Part load_fours(const float* p, int64_t) { return vld1q_f32(p); }
PF_INLINE void turn_fours(Part* x) {
  const float32x4x2_t a = vtrnq_f32(x[0], x[1]), b = vtrnq_f32(x[2], x[3]);
  x[0] = vcombine_f32(vget_low_f32(a.val[0]), vget_low_f32(b.val[0]));
  x[1] = vcombine_f32(vget_low_f32(a.val[1]), vget_low_f32(b.val[1]));
  x[2] = vcombine_f32(vget_high_f32(a.val[0]), vget_high_f32(b.val[0]));
  x[3] = vcombine_f32(vget_high_f32(a.val[1]), vget_high_f32(b.val[1]));
}
PF_INLINE Part in_register(Part x) { __asm__("" : "+w"(x)); return x; }
#endif
// clang-format on
constexpr int PART_LANES = (int)(sizeof(Part) / sizeof(float));

// bfloat16: the upper half of a float32.
PF_INLINE Floats load_bf16(const uint16_t* p) { return bits_as_floats(shift_left<16>(widen_u16(p))); }
// Rounded to nearest, ties to even; a NaN stays one (its payload's upper bits, made quiet).
PF_INLINE Ints rounded_bf16(Floats x) {
  Ints bits = bits_as_ints(x);
  Ints odd = shift_right<16>(bits) & all_ints(1);
  Ints rounded = shift_right<16>(bits + all_ints(0x7fff) + odd);
  return select(is_nan(x), shift_right<16>(bits) | all_ints(0x40), rounded);
}
PF_INLINE void store_bf16(uint16_t* p, Floats x) { narrow_u16(p, rounded_bf16(x)); }

// Four halves, as floats.
PF_INLINE void widen_four_halves(const void* from, float* to) {
#if defined(__ARM_NEON)
  vst1q_f32(to, vcvt_f32_f16(vreinterpret_f16_u16(vreinterpret_u16_u8(vld1_u8((const uint8_t*)from)))));
#else
  _mm_storeu_ps(to, _mm_cvtph_ps(_mm_loadl_epi64((const __m128i*)from)));
#endif
}

}  // namespace PF_ISA
}  // namespace pilotfish
