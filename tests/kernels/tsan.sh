#!/bin/sh
# Builds the library with ThreadSanitizer and runs its operators and its plain C interface from many threads at once. ONNX
# Runtime is not built with it, and would hide or invent races: a stand-in hands the operators their tensors and runs
# their parts on threads of its own, so that everything this library shares between sessions, calls and threads is seen.
#
# The portable loops run unless NM_EXPORT_ISA names others: what is shared is the same, and GCC 12 compiles AVX-512 with
# this sanitizer to code that computes other numbers, in one thread too.
#
# Usage: tests/kernels/tsan.sh   (from anywhere)
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/tsan
cmake -S "$root/nm_export/kernels" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNM_EXPORT_SANITIZE=thread \
  -DNM_EXPORT_BUILD_TESTS=ON
cmake --build "$build" --parallel 2 --target parallel_sessions_test
NM_EXPORT_ISA=${NM_EXPORT_ISA:-portable} TSAN_OPTIONS=halt_on_error=1 "$build/tests/parallel_sessions_test"
