/* The library as plain C, for hosts that are not ONNX Runtime: NMTopK of docs/semantics.md over ranges of rows, and the
 * product with what it kept, in parts.
 *
 * Functions start no threads and keep nothing between calls; any number of threads may call them at once, each for its
 * own rows or part. They never abort and throw nothing. The instruction set is chosen in the first call, as described
 * in docs/kernels.md. */
#ifndef NM_EXPORT_C_API_H
#define NM_EXPORT_C_API_H

#include <stddef.h>
#include <stdint.h>

#include "exported.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Changes whenever a declaration below does. */
#define NM_EXPORT_C_API_VERSION 2

enum {
  NM_EXPORT_OK = 0,
  NM_EXPORT_INVALID_ARGUMENT = 1,   /* an argument breaks what is said here; nothing was written */
  NM_EXPORT_OUT_OF_MEMORY = 2,      /* some rows may have been written */
  NM_EXPORT_NO_INSTRUCTION_SET = 3, /* NM_EXPORT_ISA names one that cannot be used here */
  NM_EXPORT_FAILURE = 4             /* anything else */
};

enum { NM_EXPORT_FLOAT32 = 0, NM_EXPORT_FLOAT16 = 1, NM_EXPORT_BFLOAT16 = 2 };

typedef struct {
  const void* x;      /* [rows, channels], of `dtype` */
  const float* score; /* [channels]; null means ones */
  const float* shift; /* [shift_size], the static shift; null means zeros */
  void* values;       /* [rows, channels], of `dtype`; does not overlap x */
  float* token_shift; /* [rows], or null */
  size_t channels;    /* a positive multiple of m */
  size_t shift_size;  /* 1 or `channels`; read where shift is not null */
  int32_t dtype;      /* of x and values */
  int32_t n, m;       /* 1 <= n <= m */
  int32_t shift_mode; /* 0 static, 1 dynamic mean, 2 dynamic median */
  int32_t variance_correction;
  int32_t pruned; /* 0: only shift */
} nm_export_nm_topk_arguments;

/* NM_EXPORT_C_API_VERSION of the library. */
NM_EXPORT_API int32_t nm_export_c_api_version(void);

/* Prunes the rows [first_row, first_row + row_count) of x. */
NM_EXPORT_API int32_t nm_export_nm_topk(const nm_export_nm_topk_arguments* arguments, size_t first_row,
                                        size_t row_count);

/* mask[i] = 1 where scores[i] is among the n highest of its m neighbours, else 0. Both are [rows, channels]; scores are
 * not negative. */
NM_EXPORT_API int32_t nm_export_keep_mask(const float* scores, size_t rows, size_t channels, int32_t n, int32_t m,
                                          uint8_t* mask);

typedef struct {
  const float* values; /* [tokens, channels] */
  const void* weight;  /* [channels, columns], of `dtype`: what an input channel is multiplied by is contiguous */
  const float* bias;   /* [columns]; null means zeros */
  float* y;            /* [tokens, columns]; overlaps no input */
  size_t tokens;
  size_t channels; /* positive, below 2^32 */
  size_t columns;
  int32_t dtype; /* of weight */
} nm_export_sparse_matmul_arguments;

/* Computes one of `parts` parts, which take about equal time, of y = values weight + bias, in float32 sums. Rows of
 * the weight where values is 0 are not read, if no token of the call needs them. 0 <= part < parts; the parts of a call
 * write different numbers of y, and all of them together write all. A part may be empty. */
NM_EXPORT_API int32_t nm_export_sparse_matmul(const nm_export_sparse_matmul_arguments* arguments, size_t part,
                                              size_t parts);

#ifdef __cplusplus
}
#endif

#endif
