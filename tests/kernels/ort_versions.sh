#!/bin/sh
# Runs the installed operator library on several releases of ONNX Runtime, each in a virtual environment of its own.
#
# Usage: tests/kernels/ort_versions.sh [PYTHON [VERSION...]]   (from the root of the repository; needs a package index;
# PYTHON has nm_export installed with the extra dev)
set -eu

python=${1:-python}
[ $# -eq 0 ] || shift
versions=${*:-1.16.3 1.17.3 newest}
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cd "$root"
library=$("$python" -c "from nm_export.ops import ops_library_path; print(ops_library_path())")
"$python" -c "
import pathlib, sys
from tests.kernels.matmul_sessions import sparse_matmul_model
from tests.kernels.sessions import nm_topk_model
model = nm_topk_model(shape=['batch', 'sequence', 64], n=8, m=16, shift_mode=1, variance_correction=1)
pathlib.Path(sys.argv[1]).write_bytes(model)
pathlib.Path(sys.argv[2]).write_bytes(sparse_matmul_model('float32', 'float16'))" "$folder/nm_topk.onnx" "$folder/product.onnx"

for version in $versions; do
  "$python" -m venv "$folder/$version"
  case $version in
    newest) set -- onnxruntime ;;
    *) set -- "onnxruntime==$version" "numpy<2" ;;
  esac
  "$folder/$version/bin/pip" install -q --disable-pip-version-check "$@"
  "$folder/$version/bin/python" tests/kernels/check_ort_version.py "$library" \
    "$folder/nm_topk.onnx" "$folder/product.onnx"
done
