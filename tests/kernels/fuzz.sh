#!/bin/sh
# Builds the kernels with clang, libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and lets the fuzzer look for
# inputs on which they step outside or differ from a slow statement. What it has found useful stays in build/fuzz/corpus;
# an input that fails is left in build/fuzz and named.
#
# Usage: tests/kernels/fuzz.sh [SECONDS] [CLANG++]   (from anywhere; 60 seconds by default)
set -eu

seconds=${1:-60}
compiler=${2:-${CXX:-clang++}}
root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/fuzz
cmake -S "$root/nm_export/kernels" -B "$build" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=RelWithDebInfo \
  -DNM_EXPORT_SANITIZE=address,undefined -DNM_EXPORT_FUZZ=ON
cmake --build "$build" --parallel 2 --target kernels_fuzz
mkdir -p "$build/corpus"
UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 "$build/tests/kernels_fuzz" -max_total_time="$seconds" -max_len=1024 \
  -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$build/" "$build/corpus"
