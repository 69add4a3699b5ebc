#!/usr/bin/env bash
# Made by `scripts/benchmark gpu --prepare`: the check, for a machine without network.
#   bash run.sh [OPTIONS OF THE CHECK]
# Environment: OUT, folder of the results (default gpu-results); PYTHON (python3); INSTALLED, where all is installed
# (beside this folder); LIMIT, seconds for everything (480).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
installed="${INSTALLED:-$here-installed}"
found="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
if [[ "$found" != "@PYTHON@" ]]; then
  echo "Error: prepared for Python @PYTHON@, but $python is $found: prepare again with --python $found" >&2
  exit 2
fi
if [[ ! -f "$installed/complete" ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$installed" "$here"/*/*.whl
  touch "$installed/complete"
fi
export PATH="$installed/bin:$PATH" # ninja, where a peer compiles itself
export PYTHONPATH="$here/equipot/src:$installed${PYTHONPATH:+:$PYTHONPATH}"
export EQUIPOT_CACHE="${EQUIPOT_CACHE:-$installed/kernels}" EQUIPOT_KERNELS=on
"$python" -c 'from equipot.ops.build import build; print("kernels:", build())'
echo "installed and compiled in $SECONDS s"
if (( ${LIMIT:-480} - SECONDS < 60 )); then
  echo "Error: too little of LIMIT=${LIMIT:-480} is left; run it again, all is installed now." >&2
  exit 2
fi
exec "$python" "$here/equipot/scripts/benchmarks/gpu/main.py" --output "${OUT:-gpu-results}" \
  --limit "$((${LIMIT:-480} - SECONDS))" "$@"
