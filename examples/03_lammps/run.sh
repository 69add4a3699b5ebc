#!/usr/bin/env bash
# Silicon from DFT data to LAMMPS: trains if there is no model yet (minutes), then runs on RANKS ranks.
#   examples/03_lammps/run.sh            in.nve on two ranks
#   RANKS=4 examples/03_lammps/run.sh in.npt -var steps 1000
set -euo pipefail
root="$(cd "$(dirname "$0")/../.." && pwd)"
cd "$root/examples/03_lammps"
export PATH="$root/.venv/bin:$PATH" OMP_NUM_THREADS=1

input="${1:-in.nve}"
if [[ "$input" == in.deviation && ! -d ensemble ]]; then
  equipot train "$root/configs/crystal_nequip_small.yaml" --ensemble 3 training.epochs=25 run.directory=silicon_3 --overwrite
  equipot deploy silicon_3 --output ensemble
elif [[ "$input" != in.deviation && ! -f model.pt ]]; then
  equipot train "$root/configs/crystal_nequip_small.yaml" run.directory=silicon --overwrite
  equipot deploy silicon --output model.pt
fi
LAMMPS_PLUGIN_PATH="$(equipot lammps path)"
export LAMMPS_PLUGIN_PATH
shift || true
exec mpiexec -n "${RANKS:-2}" lmp -in "$input" "$@"
