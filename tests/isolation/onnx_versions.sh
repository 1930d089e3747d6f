#!/bin/sh
# Runs an exported graph on the oldest ONNX Runtime that takes it and on the newest, with and without the library.
#
# Usage: tests/isolation/onnx_versions.sh [FOLDER [VERSION...]]   (needs a package index)
# FOLDER is the golden one by default. PYTHON has nm_export installed with the extra onnx.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
golden=$root/tests/golden/v1
folder=$(cd "${1:-$golden/model}" && pwd)
[ $# -eq 0 ] || shift
versions=${*:-1.23.2 newest}
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cd "$root"
library=$("$python" -c "from nm_export.ops import ops_library_path; print(ops_library_path())")
expected=
if [ "$folder" = "$golden/model" ]; then
  expected=$scratch/expected.npz
  "$python" -c "
import sys, numpy
from safetensors.numpy import load_file
expected = load_file(sys.argv[1])
numpy.savez(sys.argv[2], ids=expected['ids'], logits=expected['logits'])" "$golden/expected.safetensors" "$expected"
fi

for version in $versions; do
  "$python" -m venv "$scratch/$version"
  case $version in
    newest) package=onnxruntime ;;
    *) package="onnxruntime==$version" ;;
  esac
  "$scratch/$version/bin/pip" install -q --disable-pip-version-check "$package" numpy
  "$scratch/$version/bin/python" "$here/check_onnx.py" "$folder/onnx" "$library" $expected
done
