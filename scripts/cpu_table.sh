#!/usr/bin/env bash
# The table for a few processor cores: full CIFAR-10, cifarnet, three seeds; original, retrain and ten methods on a tenth of the
# images at random and on one class, with the verdicts of the analysis. Stopped, it goes on where it was.
# usage: scripts/cpu_table.sh             (full size, not run yet; by the speed of a step an hour on two cores with bf16)
#        ARCH=cifarnet_16_64 EPOCHS=4 scripts/cpu_table.sh   (a third of that)
# DATA: folder with the data set's files or a prepared cifar10.npz. SEEDS: with commas. More flags go to scripts/evidence.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/evidence.py table --data "${DATA:-./data}" --save_dir "${SAVE_DIR:-runs/cpu_table}" \
  --arch "${ARCH:-cifarnet}" --epochs "${EPOCHS:-8}" --seeds "${SEEDS:-1,2,3}" "$@"
