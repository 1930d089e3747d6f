// What was tuned by measurement in how a product is divided and computed.
//
// Constants of the loops themselves (rows, vectors and lines at once) stand beside them, in product/*_impl.h. All were
// measured on 2 cores of an AMD EPYC (Zen 4). "Throw-away program" is one that ran SparseMatMul for one shape and was
// not kept; "not recorded" means that nothing says how the number was found. tests/product_benchmark.cpp now measures
// all algorithms of a shape:
//
//   build/tests/product_benchmark TOKENS INPUTS OUTPUTS [INSTRUCTION SET] [TYPE]
//
// Ratios to ONNX Runtime's own products are those of `nm-export bench ops --architecture mistral-7b --threads 1 --clock
// cpu`.
#pragma once

#include <cstddef>

namespace nm_export {

struct Tuning {
  // The first candidate, as long as no times are known: up to so many tokens gather rows each on its own, and more of
  // them share weights. Throw-away program, 4096 x 1024 and 4096 x 4096.
  size_t gather_tokens_float32 = 3;
  size_t gather_tokens_16_bits = 8;

  // Of more tokens some algorithms are no candidates. Gathered rows took twice as long as packed ones at 16, and the
  // union half as long again at 32; up to 16 tokens these are the dense product. Packing integers takes longer, and
  // docs/semantics.md says up to how many tokens they are multiplied as int8 everywhere. Throw-away program.
  size_t most_tokens_gather_rows = 8;
  size_t most_tokens_gather_int8_rows = 16;
  size_t most_tokens_gather_union = 16;

  // Outputs of a task at most. A row should be read in pieces as long as can be, or the memory does not deliver: of
  // float32 rows of 14,336 numbers 7,168 at once took a sixth less time than 2,048. Throw-away program.
  size_t gather_rows_outputs = 8192;

  // Bytes of a row of a task: the union is read from the second-level cache output by output; of rows of 16 KB, of
  // which 64 fill that cache, 8 tokens took a quarter longer. Throw-away program.
  size_t gather_union_bytes = 4096;

  // The packed weights of a block of inputs stay in the second-level cache, which the sums of a task's tokens pass
  // through. Not recorded.
  size_t packed_outputs = 1024;
  size_t packed_tokens = 256;
  size_t packed_int8_tokens = 128;
  size_t fewest_packed_tokens = 32;

  // Split-K: so many tasks, or half or a quarter of them, share the inputs of shorter rows, each at least so many
  // blocks. More than one for each of two workers, so that one does not wait for the other that was late to wake up;
  // few enough that adding their sums takes no time. At 4096 x 4096, int4 and two workers, four took 0.21 ms and eight
  // 0.24. More tokens are many sums. Throw-away program.
  size_t split_k_tasks = 4;
  size_t split_k_blocks = 8;
  size_t most_tokens_split_k = 32;

  // Outputs of a task are a multiple of so many and of so many bytes, so that only the last ones of a row are not whole
  // cache lines. Not recorded.
  size_t output_unit = 64;
  size_t output_unit_bytes = 64;

  // Products and sums of a task that are worth the start of another worker: some 10 microseconds. Not recorded. (A
  // thread that sleeps takes 24 to begin; that is what short calls are tried by one thread for.)
  size_t work_of_task = size_t{1} << 16;

  // Calls of up to so many tokens and multiplications, half of them of zeros, are tried by one thread too: more of them
  // take so long, a millisecond and more as float32, that several pay. Not recorded.
  size_t most_tokens_short_call = 8;
  size_t work_of_short_call = size_t{1} << 23;

  // Up to so many tokens each number of them has its own times; more of them count as the next power of two. So many
  // values of a call are looked at for the share of kept inputs. Not recorded.
  size_t single_tokens = 8;
  size_t sampled_values = 1024;
};

inline constexpr Tuning kTuning;

}  // namespace nm_export
