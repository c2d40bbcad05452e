#!/usr/bin/env bash
# All measurements for one large GPU, in one JSON file, under eight minutes.
#   benchmarks/gpu.sh [--tiny] [--parts encoding first_token]
# OUT names the folder of the file; PYTHON the interpreter of an environment with ImpRAG.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-benchmarks/results}
mkdir -p "$out"
exec timeout 480 "${PYTHON:-python}" benchmarks/gpu.py --out "$out/gpu.json" "$@"
