# Sourced by scripts/quickstart and scripts/test: makes .venv if there is none, installs equipot in it as
# constraints.txt pins it, and puts it first on PATH. Nothing is installed again while the pins are unchanged.
# TORCH=2.14.1 takes that version of torch instead of the pinned one, in an environment of its own, .venv-torch-2.14.1.

venv=".venv${TORCH:+-torch-$TORCH}"

find_python() {
  local name
  for name in "${PYTHON:-python3}" python3 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      echo "$name"
      return
    fi
  done
  echo "Error: no Python 3.11, 3.12 or 3.13 found (python3 is $(python3 --version 2>&1 || true))." >&2
  echo "Install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 1
}

make_venv() {
  local python
  python="$(find_python)"
  echo "Making the virtual environment $venv with $("$python" --version)"
  if ! "$python" -m venv "$venv"; then
    echo "Error: '$python -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv" >&2
    rm -rf "$venv"
    return 1
  fi
}

pins() {
  # A torch with CUDA brings its own NVRTC.
  if [[ -n "${TORCH:-}" ]]; then sed "s/^torch==.*/torch==$TORCH/; /^nvidia-/d" constraints.txt; else cat constraints.txt; fi
}

install_pinned() {
  local stamp="$venv/equipot-installed" wanted
  wanted="$(cat pyproject.toml; pins)"
  if [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]]; then
    return
  fi
  echo "Installing equipot and its pinned dependencies into $venv (minutes the first time)"
  pins > "$venv/constraints.txt"
  "$venv/bin/python" -m pip install -c "$venv/constraints.txt" -e ".[test]"
  echo "$wanted" > "$stamp"
}

[[ -x "$venv/bin/pip" ]] || make_venv
install_pinned
export PATH="$PWD/$venv/bin:$PATH"
# About a minute the first time; without a compiler equipot says so and runs its slow reference.
equipot build || true
