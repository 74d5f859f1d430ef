// The kernels of this plugin, and the names that Python finds them by.
#include "head_linear/native.h"

#define PF_KERNELS \
  PF_KERNEL(head_linear)
