#!/usr/bin/env bash
# From a pretrained model to molecular dynamics, a property and a model that was fine-tuned on a few frames.
#   pip install 'equipot[properties]' sevenn
#   examples/05_pretrained/run.sh                # 7net-0; what it writes goes to examples/05_pretrained/out
#   MODEL=mine.pth examples/05_pretrained/run.sh # another SevenNet checkpoint
# STEPS, SUPERCELL, TRAIN and PHONONS (more options) make it shorter, as CI does (tests/interop/test_example.py).
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
model="${MODEL:-7net-0}" silicon="$root/examples/05_pretrained/silicon.xyz" data="$root/examples/02_crystal"
[[ ! -f "$model" ]] || model="$(realpath "$model")"
[[ ! -d "$root/.venv/bin" ]] || export PATH="$root/.venv/bin:$PATH"
mkdir -p "${OUT:-$root/examples/05_pretrained/out}"
cd "${OUT:-$root/examples/05_pretrained/out}"
read -ra train <<<"${TRAIN:-}"
read -ra phonons <<<"${PHONONS:-}"
set -x

equipot import "$model" --output pretrained.ckpt --overwrite
equipot deploy pretrained.ckpt --output pretrained.pt --overwrite
equipot check pretrained.pt
equipot md "$silicon" --model pretrained.pt --supercell "${SUPERCELL:-4x4x4}" --steps "${STEPS:-1000}" --temperature 300 \
  --timestep 1 --output md --overwrite
equipot phonons "$silicon" --model pretrained.pt --overwrite --output phonons "${phonons[@]:---relax}"
equipot train "$root/configs/fine_tune.yaml" --overwrite fine_tune.model=pretrained.ckpt run.directory=tuned "${train[@]}"
equipot evaluate tuned "$data/test.xyz"
equipot deploy tuned --output tuned.pt --overwrite
equipot phonons "$silicon" --model tuned.pt --overwrite --output phonons_tuned "${phonons[@]:---relax}"
