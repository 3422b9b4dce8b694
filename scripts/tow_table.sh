#!/usr/bin/env bash
# The ToW and ToW-MIA tables: every method over its settings and several seeds, against retrain.
# usage: scripts/tow_table.sh            (CIFAR-10, ResNet-18, 30 epochs: a GPU)
#        SIZE=small scripts/tow_table.sh (the same chain at a size for two CPU cores)
# DATA: folder with the data set's files or a prepared cifar10.npz. A sweep that was stopped goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

SIZE=${SIZE:-full}
PYTHON=${PYTHON:-.venv/bin/python}
DATASET=${DATASET:-cifar10}
DATA=${DATA:-./data}
SAVE_DIR=${SAVE_DIR:-runs/tow_table}

if [ "$SIZE" = full ]; then
  ARCH=${ARCH:-resnet18} EPOCHS=${EPOCHS:-30} FORGET=${FORGET:-3000}
  SEEDS=(${SEEDS:-1 2 3})
  FT_EPOCHS=(10)            # FT, FT_prune, RL
  NG_ALPHAS=(0.95 0.97 0.99)
  L1_ALPHAS=(1e-5 1e-4 5e-4)
  SCRUB_BETAS=(0.1)
  RL_LRS=(0.1 0.013)
else
  ARCH=${ARCH:-resnet20s} EPOCHS=${EPOCHS:-4} FORGET=${FORGET:-200}
  SEEDS=(${SEEDS:-1 2})
  FT_EPOCHS=(2)
  NG_ALPHAS=(0.95)
  L1_ALPHAS=(1e-4)
  SCRUB_BETAS=(0.1)
  RL_LRS=(0.013)
fi

runs=$(( ${#SEEDS[@]} * (8 + ${#NG_ALPHAS[@]} + ${#FT_EPOCHS[@]} * (1 + ${#L1_ALPHAS[@]} + 2 * ${#RL_LRS[@]}) + ${#SCRUB_BETAS[@]}) ))
echo "$runs runs at most; on a GPU allow half a minute each, on two CPU cores at full size many hours"

for seed in "${SEEDS[@]}"; do
  common=(--save_dir "$SAVE_DIR" --data "$DATA" --dataset "$DATASET" --arch "$ARCH" --seed "$seed")
  $PYTHON main_train.py "${common[@]}" --epochs "$EPOCHS"
  common+=(--epochs "$EPOCHS" --num_indexes_to_replace "$FORGET")
  $PYTHON generate_mask.py "${common[@]}" --density 0.5
  $PYTHON main_forget.py "${common[@]}" --unlearn retrain
  $PYTHON main_forget.py "${common[@]}" --unlearn raw
  $PYTHON main_forget.py "${common[@]}" --unlearn GA --unlearn_lr 1e-4
  $PYTHON main_forget.py "${common[@]}" --unlearn GA --unlearn_lr 1e-3
  $PYTHON main_forget.py "${common[@]}" --unlearn GA_l1
  for alpha in "${NG_ALPHAS[@]}"; do
    $PYTHON main_forget.py "${common[@]}" --unlearn NG --alpha "$alpha"
  done
  for beta in "${SCRUB_BETAS[@]}"; do
    $PYTHON main_forget.py "${common[@]}" --unlearn SCRUB --beta "$beta"
  done
  for epochs in "${FT_EPOCHS[@]}"; do
    $PYTHON main_forget.py "${common[@]}" --unlearn FT --unlearn_epochs "$epochs"
    for alpha in "${L1_ALPHAS[@]}"; do
      $PYTHON main_forget.py "${common[@]}" --unlearn FT_prune --unlearn_epochs "$epochs" --alpha "$alpha"
    done
    for lr in "${RL_LRS[@]}"; do
      $PYTHON main_random.py "${common[@]}" --unlearn RL_og --unlearn_epochs "$epochs" --unlearn_lr "$lr"
      $PYTHON main_random.py "${common[@]}" --unlearn RL --unlearn_epochs "$epochs" --unlearn_lr "$lr" --path "$SAVE_DIR"
    done
  done
done
$PYTHON analysis.py --save_dir "$SAVE_DIR"
$PYTHON analysis_mia.py --save_dir "$SAVE_DIR"
