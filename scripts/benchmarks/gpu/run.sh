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
"$python" -c '
import sys
try:
    import numpy, torch
except ImportError as error:
    sys.exit(f"Error: {error}; the check brings neither torch nor NumPy")
if int(numpy.__version__.split(".")[0]) < 2:
    sys.exit(f"Error: NumPy {numpy.__version__} is here, and 2.0 or newer is needed")
' || exit 2
read -r compiler _ <<< "${CXX:-g++}"
if ! command -v "$compiler" > /dev/null; then
  echo "Error: no C++ compiler ($compiler); install g++ 10 or newer, or set CXX" >&2
  exit 2
fi
if ! mkdir -p "$installed"; then
  echo "Error: cannot write beside this folder; set INSTALLED to a folder that can be written" >&2
  exit 2
fi
# What is installed is what lies here now: the folder may have been prepared again.
wheels="$(cd "$here" && ls */*.whl)"
if [[ ! -f "$installed/complete" || "$(cat "$installed/complete")" != "$wheels" ]]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
    --target "$installed" "$here"/*/*.whl
  echo "$wheels" > "$installed/complete"
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
