#!/bin/sh
# Cross-compiles the operator library for aarch64 and runs its C++ tests, with every instruction set of that processor,
# under emulation: results are tested, speed is not.
#
# Usage: tests/kernels/aarch64.sh   (needs Debian's packages cmake, g++-aarch64-linux-gnu and qemu-user)
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd)
build=$root/build/aarch64
cmake -S "$root/nm_export/kernels" -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
  "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu" \
  -DNM_EXPORT_BUILD_TESTS=ON -DNM_EXPORT_WERROR=ON
cmake --build "$build" --parallel 2
ctest --test-dir "$build" --output-on-failure --verbose
