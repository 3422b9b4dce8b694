#!/usr/bin/env bash
# Memorization and RUM for a few processor cores: scores of full CIFAR-10 from 100 models, eight proxies with their Spearman,
# the methods on the least, middle and most memorized images and on a mix, RUM and its controls. Stopped, it goes on.
# usage: scripts/cpu_rum.sh               (full size, not run yet: by the speed of a step an evening on two cores with bf16)
#        ARCH=cifarnet_16_64 EPOCHS=4 SEEDS=1 scripts/cpu_rum.sh   (a third of the time for each model)
# DATA: folder with the data set's files or a prepared cifar10.npz. More flags go to scripts/evidence.py.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-.venv/bin/python}" scripts/evidence.py rum --data "${DATA:-./data}" --save_dir "${SAVE_DIR:-runs/cpu_rum}" \
  --arch "${ARCH:-cifarnet}" --epochs "${EPOCHS:-8}" --seeds "${SEEDS:-1,2,3}" --models "${MODELS:-100}" "$@"
