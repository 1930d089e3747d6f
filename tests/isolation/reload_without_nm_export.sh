#!/bin/sh
# Reloads an exported folder where only torch, transformers and safetensors are installed, and compares its logits.
#
# Usage: tests/isolation/reload_without_nm_export.sh [FOLDER EXPECTED]   (needs a package index)
# FOLDER and EXPECTED are the golden ones by default; see reload.py for what EXPECTED holds. PYTHON names the interpreter.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../golden/v1/model}
expected=${2:-$here/../golden/v1/expected.safetensors}
folder=$(cd "$folder" && pwd)
expected=$(cd "$(dirname "$expected")" && pwd)/$(basename "$expected")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install -q --disable-pip-version-check "${TORCH:-torch==2.13.0}" transformers safetensors
cd "$scratch"  # so that a source tree in the working directory is not found
unset PYTHONPATH
HF_HUB_OFFLINE=1 HF_HOME=$scratch/cache venv/bin/python "$here/reload.py" "$folder" "$expected"
