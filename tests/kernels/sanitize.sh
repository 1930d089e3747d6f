#!/bin/sh
# Builds the operator library with AddressSanitizer and UndefinedBehaviorSanitizer, runs the C++ tests, and then the
# Python tests of the kernels inside ONNX Runtime.
#
# Usage: tests/kernels/sanitize.sh [PYTHON]   (from the root of the repository; PYTHON has the packages of the extra dev)
set -eu

python=${1:-python}
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/sanitize
cmake -S "$root/nm_export/kernels" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DNM_EXPORT_SANITIZE=address,undefined -DNM_EXPORT_BUILD_TESTS=ON -DNM_EXPORT_WERROR=ON
cmake --build "$build" --parallel 2
ctest --test-dir "$build" --output-on-failure

# The interpreter is not built with the sanitizer, so its run-time comes first by preload. Python and its packages
# free little at their end: leaks are looked for by the C++ tests, not here.
compiler=${CXX:-c++}
preload="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libubsan.so)"
cd "$root"
# The C++ tests and the fuzzer try random inputs too, so that an eighth of these examples is enough.
NM_EXPORT_FEWER_EXAMPLES=8 LD_PRELOAD="$preload" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
  NM_EXPORT_OPS_LIBRARY="$build/libnm_export_ops.so" PYTHONPATH="$root" \
  "$python" -m pytest tests/kernels -q -p no:cacheprovider -p no:xdist -k "not genai and not importing"
