// The kernels of the core: each folder's native.h, and the names that Python finds them by.
#include "paged_attention/native.h"
#include "context_kv_write/native.h"
#include "kv_write/native.h"
#include "linear/native.h"
#include "grouped_linear/native.h"
#include "combine_rows/native.h"
#include "elementwise/native.h"
#include "layer_norm/native.h"
#include "rms_norm/native.h"
#include "rope/native.h"
#include "router/native.h"
#include "short_conv/native.h"
#include "sum_slices/native.h"
#include "swiglu/native.h"
#include "sampling/native.h"
#include "take_rows/native.h"

#define PF_KERNELS \
  PF_KERNEL(paged_attention) \
  PF_KERNEL(linear) \
  PF_KERNEL(lookup_rows) \
  PF_KERNEL(grouped_linear) \
  PF_KERNEL(add_scaled) \
  PF_KERNEL(apply_rope) \
  PF_KERNEL(choose_experts) \
  PF_KERNEL(combine_rows) \
  PF_KERNEL(elementwise) \
  PF_KERNEL(layer_norm) \
  PF_KERNEL(rms_norm) \
  PF_KERNEL(rope_angles) \
  PF_KERNEL(short_conv) \
  PF_KERNEL(softmax) \
  PF_KERNEL(sum_slices) \
  PF_KERNEL(swiglu) \
  PF_KERNEL(sample_rows) \
  PF_KERNEL(gumbel_noise) \
  PF_KERNEL(gumbel_of_counters) \
  PF_KERNEL(apply_bitmask) \
  PF_KERNEL(take_rows) \
  PF_KERNEL(write_context_kv) \
  PF_KERNEL(write_kv)
