// What the driver runs: a function for each kernel, which makes arguments, runs, and hands over the results.
//
// To add one: write it, name it in CASES at the end, then `python tests/native/digests.py --write`.
// Sizes are odd, so that tails are run; records are zero where nothing is set.

template <typename Body>
static void for_each_dtype(Body body) {
  for (int64_t dtype : {PF_FLOAT32, PF_BFLOAT16, PF_FLOAT16}) body(dtype, dtype == PF_FLOAT32 ? (size_t)4 : (size_t)2);
}

static void case_rms_norm(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    for (int64_t width : {1, 16, 77, 200}) {
      const int64_t rows = 5;
      pf_rms_norm a = {};
      a.rows = rows, a.heads = 1, a.width = width, a.eps = 1e-5f, a.multiplier = 0.5f;
      a.row_stride = a.out_row_stride = a.residual_stride = a.head_stride = a.out_head_stride = width;
      a.dtype = a.weight_dtype = dtype;
      a.x = c.numbers(dtype, rows * width);
      a.weight = c.numbers(dtype, width);
      for (int64_t cast : {0, 1}) {
        a.cast_before_weight = cast;
        a.out = c.nothing(rows * width * size);
        c.run("rms_norm", a);
        c.result(a.out, rows * width * size);
      }
      a.residual = c.numbers(dtype, rows * width);
      c.run("rms_norm", a);
      c.result(a.out, rows * width * size);
      c.result(a.residual, rows * width * size);
    }
  });
}

static void case_add_scaled(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_add_scaled a = {};
    a.rows = 3, a.width = 53, a.dtype = dtype, a.multiplier = 0.7;
    a.row_stride = a.residual_stride = a.out_stride = a.width;
    a.x = c.numbers(dtype, 3 * 53);
    a.residual = c.numbers(dtype, 3 * 53);
    a.out = c.nothing(3 * 53 * size);
    c.run("add_scaled", a);
    c.result(a.out, 3 * 53 * size);
  });
}

static void case_layer_norm(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_layer_norm a = {};
    a.rows = 4, a.width = 83, a.dtype = dtype, a.eps = 1e-5f, a.multiplier = 1.0f;
    a.row_stride = a.out_stride = a.residual_stride = a.width;
    a.x = c.numbers(dtype, 4 * 83);
    a.weight = c.floats(83), a.bias = c.floats(83);
    a.out = c.nothing(4 * 83 * size);
    c.run("layer_norm", a);
    c.result(a.out, 4 * 83 * size);
  });
}

static void case_rope(Case& c) {
  for (int64_t interleaved : {0, 1}) {
    pf_rope_angles angles = {};
    angles.rows = 5, angles.pairs = 19, angles.interleaved = interleaved, angles.scale = 1.25;
    angles.positions = c.whole<int64_t>(5, 100000);
    angles.frequencies = c.floats(19, 0.0f, 1.0f);
    angles.cos = (float*)c.nothing(5 * 38 * 4), angles.sin = (float*)c.nothing(5 * 38 * 4);
    c.run("rope_angles", angles);
    c.result(angles.cos, 5 * 38 * 4);
    c.result(angles.sin, 5 * 38 * 4);
    for_each_dtype([&](int64_t dtype, size_t size) {
      pf_apply_rope a = {};
      a.rows = 5, a.heads = 3, a.rotated = 38, a.head_stride = 45, a.row_stride = 3 * 45;
      a.dtype = dtype, a.interleaved = interleaved, a.cos = angles.cos, a.sin = angles.sin;
      a.x = c.numbers(dtype, 5 * 3 * 45);
      c.run("apply_rope", a);
      c.result(a.x, 5 * 3 * 45 * size);
    });
  }
}

static void case_elementwise(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_elementwise a = {};
    a.rows = 3, a.width = a.row_stride = 1100, a.dtype = dtype;
    a.out = c.nothing(3 * 1100 * size);
    for (int64_t function = 0; function <= pilotfish::PF_ISA::OF_ERF; function++) {
      const bool is_log = function == pilotfish::PF_ISA::OF_LOG;
      a.function = function;
      a.x = c.numbers(dtype, 3 * 1100, is_log ? 0.001f : -12.0f, 12.0f);
      c.run("elementwise", a);
      c.result(a.out, 3 * 1100 * size);
    }
    a.function = pilotfish::PF_ISA::OF_CLIP, a.limit = 3.3f;
    c.run("elementwise", a);
    c.result(a.out, 3 * 1100 * size);
  });
  // The ends of float32, and where formulas change.
  const std::vector<float> ends = {0.0f,   1e-45f, 1e-40f,  1.17549435e-38f, 1e-20f,  0.65f,   0.9f,   0.921875f, 1.41421356f,
                                   4.001f, 20.0f,  88.72f,  89.0f,           103.9f,  104.1f,  1e10f,  3e38f};
  const int64_t count = (int64_t)ends.size();
  std::vector<float> both = ends;
  for (float one : ends) both.push_back(-one);
  pf_elementwise a = {};
  a.rows = 1, a.x = c.list(both), a.out = c.nothing(both.size() * 4);
  for (int64_t function = 0; function <= pilotfish::PF_ISA::OF_ERF; function++) {
    const bool is_log = function == pilotfish::PF_ISA::OF_LOG;  // none of a negative number
    a.function = function, a.width = a.row_stride = is_log ? count : 2 * count;
    c.run("elementwise", a);
    c.result(a.out, (size_t)a.width * 4);
  }
}

static void case_softmax(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_softmax a = {};
    a.rows = 3, a.width = a.row_stride = 333, a.dtype = dtype;
    a.x = c.numbers(dtype, 3 * 333, -20.0f, 20.0f);
    a.out = c.nothing(3 * 333 * size);
    c.run("softmax", a);
    c.result(a.out, 3 * 333 * size);
  });
}

static void case_swiglu(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_swiglu a = {};
    a.rows = 3, a.width = 531, a.row_stride = 2 * 531, a.dtype = dtype;
    a.gate_up = c.numbers(dtype, 3 * 2 * 531, -8.0f, 8.0f);
    a.out = c.nothing(3 * 531 * size);
    c.run("swiglu", a);
    c.result(a.out, 3 * 531 * size);
  });
}

static void case_sum_slices(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    for (int64_t slices : {1, 3, 8}) {
      pf_sum_slices a = {};
      a.rows = 3, a.width = 277, a.slices = slices, a.row_stride = slices * 277 + 5;
      a.out_dtype = a.bias_dtype = dtype;
      a.terms = (const float*)c.numbers(PF_FLOAT32, 3 * a.row_stride, -9.0f, 9.0f);
      a.bias = c.numbers(dtype, 277);
      a.out = c.nothing(3 * 277 * size);
      c.run("sum_slices", a);
      c.result(a.out, 3 * 277 * size);
      a.bias = nullptr;
      c.run("sum_slices", a);
      c.result(a.out, 3 * 277 * size);
    }
  });
}

static void case_take_rows(Case& c) {
  pf_take_rows a = {};
  a.rows = 9, a.row_bytes = 37;
  a.x = c.bytes(5 * 37);
  a.index = c.whole<int64_t>(9, 5);
  a.out = c.nothing(9 * 37);
  c.run("take_rows", a);
  c.result(a.out, 9 * 37);
}

// A weight's rows of any kind: random bytes, but for the scales, which are halves from 1/64 to 1.
struct Kind {
  int64_t kind, columns, bytes;
  std::vector<size_t> scales;  // where in a block
};
static const Kind BLOCK_KINDS[] = {
    {PF_Q4_0, 32, 18, {0}},       {PF_Q4_1, 32, 20, {0, 2}},     {PF_Q5_0, 32, 22, {0}},      {PF_Q5_1, 32, 24, {0, 2}},
    {PF_Q8_0, 32, 34, {0}},       {PF_Q4_K, 256, 144, {0, 2}},   {PF_Q5_K, 256, 176, {0, 2}}, {PF_Q6_K, 256, 210, {208}},
};
static pf_weight_part block_rows(Case& c, const Kind& kind, int64_t outputs, int64_t columns) {
  pf_weight_part part = {};
  part.kind = kind.kind, part.outputs = outputs, part.row_bytes = columns / kind.columns * kind.bytes;
  uint8_t* data = (uint8_t*)c.bytes(outputs * part.row_bytes);
  for (int64_t block = 0; block < outputs * columns / kind.columns; block++) {
    for (size_t at : kind.scales) {
      memcpy(data + block * kind.bytes + at, c.numbers(PF_FLOAT16, 1, 0x1p-6f, 1.0f), 2);
    }
  }
  part.data = data;
  return part;
}
static pf_weight_part float_rows(Case& c, int64_t dtype, int64_t outputs, int64_t columns) {
  pf_weight_part part = {};
  part.kind = dtype, part.outputs = outputs, part.row_bytes = columns * (dtype == PF_FLOAT32 ? 4 : 2);
  part.data = c.numbers(dtype, outputs * columns);
  return part;
}
static pf_weight_part int4_rows(Case& c, int64_t dtype, int64_t outputs, int64_t columns, int64_t group) {
  pf_weight_part part = {};
  part.kind = PF_INT4, part.outputs = outputs, part.row_bytes = columns / 2;
  part.data = c.bytes(outputs * columns / 2);
  part.scale_dtype = dtype, part.group_size = group;
  part.scale = c.numbers(dtype, outputs * (columns / group), 0x1p-6f, 1.0f);
  return part;
}
// Products with few and many rows, and the weight's own rows.
static void multiply(Case& c, const std::vector<pf_weight_part>& parts, int64_t columns, int64_t dtype) {
  const size_t size = dtype == PF_FLOAT32 ? 4 : 2;
  int64_t outputs = 0;
  for (const pf_weight_part& part : parts) outputs += part.outputs;
  for (int64_t rows : {1, 3, 29}) {
    pf_linear a = {};
    a.rows = rows, a.in_features = a.x_stride = columns, a.out_stride = outputs;
    a.parts = parts.data(), a.num_parts = (int64_t)parts.size(), a.slices = 1;
    a.x_dtype = a.out_dtype = a.bias_dtype = dtype;
    a.x = c.numbers(dtype, rows * columns);
    if (rows == 3) a.bias = c.numbers(dtype, outputs);
    a.out = c.nothing(rows * outputs * size);
    c.run("linear", a);
    c.result(a.out, rows * outputs * size);
  }
  pf_lookup_rows a = {};
  a.part = &parts[0], a.outputs = parts[0].outputs, a.rows = 4, a.in_features = a.out_stride = columns;
  a.out_dtype = dtype;
  a.tokens = c.whole<int64_t>(4, (uint64_t)a.outputs);
  a.out = c.nothing(4 * columns * size);
  c.run("lookup_rows", a);
  c.result(a.out, 4 * columns * size);
}
static void case_linear_floats(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t) {
    for (int64_t columns : {1, 47, 1100}) multiply(c, {float_rows(c, dtype, 37, columns)}, columns, dtype);
  });
}
// Each slice with a weight of its own; what a row has beside its slices is not read.
static void case_linear_slices(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t) {
    for (int64_t rows : {1, 5, 29, 100}) {
      const int64_t slices = 3, columns = 47, outputs = 37;
      std::vector<pf_weight_part> parts;
      for (int64_t s = 0; s < slices; s++) {
        parts.push_back(float_rows(c, dtype, 20, columns));
        parts.push_back(float_rows(c, PF_FLOAT32, 17, columns));
      }
      pf_linear a = {};
      a.rows = rows, a.in_features = columns, a.slices = slices, a.parts = parts.data(), a.num_parts = 2;
      a.x_dtype = dtype, a.x_stride = slices * columns + 5, a.out_dtype = PF_FLOAT32, a.out_stride = slices * outputs + 3;
      a.x = c.numbers(dtype, rows * a.x_stride);
      a.out = c.nothing(rows * a.out_stride * 4);
      c.run("linear", a);
      c.result(a.out, rows * a.out_stride * 4);
    }
  });
}
static void case_linear_blocks(Case& c) {
  for (const Kind& kind : BLOCK_KINDS) {
    for (int64_t dtype : {PF_FLOAT32, PF_BFLOAT16}) multiply(c, {block_rows(c, kind, 21, 768)}, 768, dtype);
  }
  multiply(c, {block_rows(c, BLOCK_KINDS[0], 5, 96)}, 96, PF_FLOAT16);
}
static void case_linear_int4(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t) {
    multiply(c, {int4_rows(c, dtype, 19, 576, 32)}, 576, dtype);
    multiply(c, {int4_rows(c, dtype, 7, 40, 8)}, 40, dtype);
  });
}
static void case_linear_parts(Case& c) {
  multiply(c, {block_rows(c, BLOCK_KINDS[5], 9, 512), block_rows(c, BLOCK_KINDS[7], 18, 512),
               float_rows(c, PF_BFLOAT16, 3, 512)}, 512, PF_BFLOAT16);
}

static void case_paged_attention(Case& c) {
  struct Shape { int64_t heads, kv_heads, width, value_width, window, is_block; };
  for_each_dtype([&](int64_t dtype, size_t size) {
    for (Shape s : {Shape{6, 2, 40, 40, 0, 0}, Shape{3, 3, 16, 16, 70, 0}, Shape{4, 1, 64, 48, 0, 1}}) {
      // Requests with 0, 130 and 700 rows before, and 3, 1 and 20 of the pass; pages of 16 slots in any order.
      const std::vector<int32_t> lengths = {0, 130, 700}, offsets = {0, 3, 4, 24};
      const int64_t page_size = 16, page_stride = 45, pages = 3 * page_stride;
      std::vector<int32_t> ids(pages);
      for (int64_t i = 0; i < pages; i++) ids[i] = (int32_t)(i * 31 % pages);
      pf_attention_pass pass = {};
      pass.pages = c.list(ids), pass.lengths = c.list(lengths), pass.row_offsets = c.list(offsets);
      pass.requests = 3, pass.page_stride = page_stride, pass.page_size = page_size;
      const bool is_shared = s.value_width != s.width;  // the first part of a key is the value
      pf_paged_attention a = {};
      a.pass = &pass, a.heads = s.heads, a.kv_heads = s.kv_heads, a.width = s.width, a.value_width = s.value_width;
      a.q_head_stride = s.width, a.q_row_stride = s.heads * s.width;
      a.value_offset = is_shared ? 0 : s.kv_heads * s.width;
      a.slot_stride = s.kv_heads * s.width * (is_shared ? 1 : 2);
      a.window = s.window, a.is_block = s.is_block, a.q_dtype = a.cache_dtype = dtype, a.scale = 0.3f;
      a.q = c.numbers(dtype, 24 * s.heads * s.width);
      a.cache = c.numbers(dtype, pages * page_size * a.slot_stride);
      const size_t bytes = 24 * s.heads * s.value_width * size;
      a.out = c.nothing(bytes);
      c.run("paged_attention", a);
      c.result(a.out, bytes);
    }
  });
}

static void case_write_kv(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    for_each_dtype([&](int64_t cache_dtype, size_t cache_size) {
      pf_write_kv a = {};
      a.rows = 3, a.width = 52, a.row_stride = 60, a.dtype = dtype, a.cache_dtype = cache_dtype;
      a.kv = c.numbers(dtype, 3 * 60);
      a.slots = c.list<int64_t>({4, 0, 2});
      a.cache = c.nothing(5 * 52 * cache_size);
      c.run("write_kv", a);
      c.result(a.cache, 5 * 52 * cache_size);
    });
  });
}

static void case_write_context_kv(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_write_context_kv a = {};
    a.rows = 3, a.layers = 2, a.heads = 2, a.width = 38, a.rotated = 38;
    a.dtype = a.cache_dtype = dtype, a.eps = 1e-6f;
    a.kv = c.numbers(dtype, 3 * 2 * 2 * 2 * 38);
    a.weight = c.numbers(dtype, 2 * 38);
    a.cos = c.floats(3 * 38, -1.0f, 1.0f), a.sin = c.floats(3 * 38, -1.0f, 1.0f);
    a.slots = c.list<int64_t>({4, 0, 2});
    const size_t bytes = 5 * 2 * 2 * 38 * size;
    void* caches[2] = {c.nothing(bytes), c.nothing(bytes)};
    a.caches = caches;
    c.run("write_context_kv", a);
    for (void* cache : caches) c.result(cache, bytes);
  });
}

static void case_grouped_linear(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    const int64_t columns = 288, outputs = 37;
    const std::vector<pf_weight_part> parts = {float_rows(c, dtype, outputs, columns),
                                               block_rows(c, BLOCK_KINDS[4], outputs, columns),
                                               int4_rows(c, dtype, outputs, columns, 32)};
    pf_grouped_linear a = {};
    a.parts = parts.data();
    a.spans = c.list<int64_t>({2, 0, 0, 1, 2, 1, 14});  // two groups have rows, and group 1 none
    a.x_rows = 5, a.in_features = a.x_stride = columns, a.out_stride = outputs;
    a.x_dtype = a.out_dtype = dtype;
    a.x = c.numbers(dtype, 5 * columns);
    a.rows = c.whole<int64_t>(14, 5);
    a.out = c.nothing(14 * outputs * size);
    c.run("grouped_linear", a);
    c.result(a.out, 14 * outputs * size);
  });
}

static void case_sampling(Case& c) {
  const int64_t vocab = 1237, num_rows = 6;
  std::vector<pf_sampling_row> rows(num_rows);
  for (int64_t i = 0; i < num_rows; i++) {
    pf_sampling_row& row = rows[i] = {};
    row.repetition_penalty = 1.0f, row.seed = 7 + (uint64_t)i, row.position = 3 * (uint64_t)i;
    if (i) row.temperature = 0.7f;
    if (i == 2) row.top_k = 9;
    if (i == 3) row.top_p = 0.8;
    if (i == 4) row.min_p = 0.02;
    if (i == 5) {
      row.bias_ids = c.whole<int64_t>(1, vocab), row.bias = c.floats(1), row.num_bias = 1;
      row.seen_ids = c.list<int64_t>({3, 50, 900}), row.seen_counts = c.list<int64_t>({0, 2, 1}), row.num_seen = 3;
      row.banned_ids = c.list<int64_t>({17, 18}), row.num_banned = 2;
      row.repetition_penalty = 1.3f, row.frequency_penalty = 0.2f, row.presence_penalty = 0.1f;
    }
    row.wants_logprobs = 1, row.num_top = 5;
    row.top_ids = (int64_t*)c.nothing(5 * 8), row.top_logprobs = (double*)c.nothing(5 * 8);
  }
  pf_sample_rows a = {};
  a.rows = rows.data(), a.num_rows = num_rows, a.vocab_size = a.row_stride = vocab, a.draws = 1;
  a.logits = c.floats(num_rows * vocab, -10.0f, 10.0f);
  a.processed = (float*)c.nothing(num_rows * vocab * 4);
  a.tokens = (int64_t*)c.nothing(num_rows * 8);
  c.run("sample_rows", a);
  if (a.failed) failures++;
  c.result(a.processed, num_rows * vocab * 4);
  c.result(a.tokens, num_rows * 8);
  for (const pf_sampling_row& row : rows) {
    c.result(&row.rank, sizeof(row.rank));
    c.result(&row.logprob, sizeof(row.logprob));
    c.result(row.top_ids, 5 * 8);
    c.result(row.top_logprobs, 5 * 8);
  }
}

static void case_noise(Case& c) {
  pf_gumbel_noise a = {};
  a.num_rows = 3, a.vocab_size = 777;
  a.seeds = c.whole<uint64_t>(3, UINT64_MAX), a.positions = c.whole<uint64_t>(3, 1000);
  a.out = (float*)c.nothing(3 * 777 * 4);
  c.run("gumbel_noise", a);
  c.result(a.out, 3 * 777 * 4);
  pf_gumbel_of_counters b = {};
  b.count = 99;
  b.counters = c.whole<uint64_t>(99, UINT64_MAX);
  b.out = (float*)c.nothing(99 * 4);
  c.run("gumbel_of_counters", b);
  c.result(b.out, 99 * 4);
}

static void case_bitmask(Case& c) {
  pf_apply_bitmask a = {};
  a.num_rows = 3, a.vocab_size = a.row_stride = 777;
  a.logits = c.floats(3 * 777);
  a.masks = (const uint32_t*)c.bytes(3 * 25 * 4);
  a.out = (float*)c.nothing(3 * 777 * 4);
  c.run("apply_bitmask", a);
  c.result(a.out, 3 * 777 * 4);
}

static void case_choose_experts(Case& c) {
  const int64_t rows = 4, experts = 45;
  for (int64_t scoring : {0, 1, 2}) {
    for (int64_t groups : {1, 5}) {
      pf_choose_experts a = {};
      a.rows = rows, a.experts = a.row_stride = experts, a.chosen = 6, a.scoring = scoring;
      a.groups = groups, a.kept_groups = groups / 2 + 1, a.normalize = groups > 1, a.scale = 2.5;
      a.logits = c.floats(rows * experts, -4.0f, 4.0f);
      a.bias = groups > 1 ? c.floats(experts, -0.25f, 0.25f) : nullptr;
      a.choice = (int64_t*)c.nothing(rows * 6 * 8), a.weights = (float*)c.nothing(rows * 6 * 4);
      const size_t pairs = rows * 6;
      pf_row_groups& sorted = a.by_expert;
      sorted.rows = (int64_t*)c.nothing(pairs * 8), sorted.places = (int64_t*)c.nothing(pairs * 8);
      sorted.spans = (int64_t*)c.nothing((1 + 3 * experts) * 8);
      c.run("choose_experts", a);
      c.result(a.choice, pairs * 8);
      c.result(a.weights, pairs * 4);
      c.result(sorted.rows, pairs * 8);
      c.result(sorted.places, pairs * 8);
      c.result(sorted.spans, (1 + 3 * (size_t)sorted.spans[0]) * 8);
    }
  }
}

static void case_combine_rows(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    pf_combine_rows a = {};
    a.rows = 5, a.filled = 4, a.terms = 3, a.width = a.row_stride = a.last_stride = 531, a.dtype = dtype;
    a.x = c.numbers(dtype, 7 * 531);
    a.places = c.whole<int64_t>(4 * 3, 7);
    a.weights = c.floats(4 * 3, 0.0f, 1.0f);
    a.last = c.numbers(dtype, 5 * 531);
    a.out = c.nothing(5 * 531 * size);
    c.run("combine_rows", a);
    c.result(a.out, 5 * 531 * size);
  });
}

static void case_short_conv(Case& c) {
  for_each_dtype([&](int64_t dtype, size_t size) {
    const int64_t width = 3, columns = 150, memory_rows = 20;
    // Two rows in a ring, in another order than they lie in the pass, and four that follow one another.
    void* ring = c.numbers(dtype, memory_rows * columns);
    void* strip = c.numbers(dtype, memory_rows * columns);
    pf_short_conv_rows parts[2] = {};
    parts[0].memories = c.list<void*>({nullptr, ring});
    parts[0].columns = c.list<int64_t>({6, 7, 4, 11, 8, 9});
    parts[0].rows = c.list<int64_t>({5, 0});
    parts[0].count = 2;
    parts[1].memories = c.list<void*>({nullptr, strip});
    parts[1].count = 4, parts[1].first_row = 1, parts[1].start = 3;
    parts[0].memory_stride = parts[1].memory_stride = columns;
    const pf_short_conv_pass pass = {parts, 2, 6};
    pf_short_conv a = {};
    a.pass = &pass, a.layer = 1, a.num_rows = 8, a.size = columns, a.width = width, a.dtype = dtype;
    a.row_stride = 3 * columns;
    a.bcx = c.numbers(dtype, 8 * 3 * columns);
    a.weight = c.floats(width * columns), a.bias = c.floats(columns);
    a.out = c.nothing(8 * columns * size);
    c.run("short_conv", a);
    c.result(a.out, 8 * columns * size);
    c.result(ring, memory_rows * columns * size);
    c.result(strip, memory_rows * columns * size);
  });
}

static const NamedCase CASES[] = {
    {"rms_norm", case_rms_norm},
    {"add_scaled", case_add_scaled},
    {"layer_norm", case_layer_norm},
    {"rope", case_rope},
    {"elementwise", case_elementwise},
    {"softmax", case_softmax},
    {"swiglu", case_swiglu},
    {"sum_slices", case_sum_slices},
    {"take_rows", case_take_rows},
    {"linear_floats", case_linear_floats},
    {"linear_blocks", case_linear_blocks},
    {"linear_int4", case_linear_int4},
    {"linear_slices", case_linear_slices},
    {"linear_parts", case_linear_parts},
    {"paged_attention", case_paged_attention},
    {"grouped_linear", case_grouped_linear},
    {"write_kv", case_write_kv},
    {"write_context_kv", case_write_context_kv},
    {"sampling", case_sampling},
    {"noise", case_noise},
    {"bitmask", case_bitmask},
    {"choose_experts", case_choose_experts},
    {"combine_rows", case_combine_rows},
    {"short_conv", case_short_conv},
};
