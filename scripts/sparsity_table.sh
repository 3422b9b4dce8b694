#!/usr/bin/env bash
# Sparsity before unlearning: dense to 99 % by OMP, class 0 and random forgetting, every method against retrain.
# usage: scripts/sparsity_table.sh            (the published recipe: CIFAR-10, ResNet-18, 182 epochs: a GPU)
#        SIZE=small scripts/sparsity_table.sh (the same chain at a size for two CPU cores)
# DATA: folder with the data set's files or a prepared cifar10.npz. A sweep that was stopped goes on where it was: the dense
# training is shared by all sparsities, and each prune of it is a run of its own.
set -euo pipefail
cd "$(dirname "$0")/.."

SIZE=${SIZE:-full}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-./data}
SAVE_DIR=${SAVE_DIR:-runs/sparsity_table}
METHODS=(${METHODS:-raw retrain FT GA FT_prune fisher_new wfisher})
SETS=(${SETS:-class random})

if [ "$SIZE" = full ]; then
  DATASET=${DATASET:-cifar10} ARCH=${ARCH:-resnet18} FORGET=${FORGET:-4500}
  SEEDS=(${SEEDS:-1 2 3})
  SPARSITIES=(${SPARSITIES:-0 0.5 0.75 0.9 0.95 0.99})
  TRAIN=(--rewind_epoch 8)             # the protocol's 182 epochs, steps at 91 and 136, augmentation
  SHORT=()
else
  DATASET=${DATASET:-digits} ARCH=${ARCH:-resnet20s} FORGET=${FORGET:-129}
  SEEDS=(${SEEDS:-1 2})
  SPARSITIES=(${SPARSITIES:-0 0.75 0.95})
  TRAIN=(--epochs 10 --schedule cosine --rewind_epoch 1)
  SHORT=(--unlearn_epochs 3)
  export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # images this small gain nothing from a second thread
fi

# what a method is given beyond its name: the published lines
flags() {
  case $1 in
    FT)           echo "--unlearn_lr 0.01 ${SHORT[*]:---unlearn_epochs 10}" ;;
    GA)           echo "--unlearn_lr 0.0001 ${SHORT[*]:---unlearn_epochs 5}" ;;
    FT_prune)     echo "--unlearn_lr 0.01 --alpha 1e-4 ${SHORT[*]:---unlearn_epochs 10}" ;;
    fisher_new)   echo "--alpha ${FISHER_ALPHA:-1e-4}" ;;
    wfisher)      echo "--alpha ${WFISHER_ALPHA:-1}" ;;
  esac
}

runs=$(( ${#SEEDS[@]} * ${#SPARSITIES[@]} * (1 + ${#SETS[@]} * ${#METHODS[@]}) ))
echo "$runs runs at most; at full size ${#SEEDS[@]} x ${#SPARSITIES[@]} x $(( 1 + ${#SETS[@]} )) are whole trainings: a GPU"

for seed in "${SEEDS[@]}"; do
  common=(--save_dir "$SAVE_DIR" --data "$DATA" --dataset "$DATASET" --arch "$ARCH" --seed "$seed")
  for sparsity in "${SPARSITIES[@]}"; do
    $PYTHON main_imp.py "${common[@]}" "${TRAIN[@]}" --sparsity "$sparsity"
    for set in "${SETS[@]}"; do
      if [ "$set" = class ]; then forget=(--class_to_replace 0); else forget=(--num_indexes_to_replace "$FORGET"); fi
      for method in "${METHODS[@]}"; do
        read -ra words <<< "$(flags "$method")"
        $PYTHON main_forget.py "${common[@]}" --sparsity "$sparsity" "${forget[@]}" --unlearn "$method" ${words[@]+"${words[@]}"}
      done
    done
  done
done
$PYTHON analysis.py --save_dir "$SAVE_DIR"
$PYTHON analysis_mia.py --save_dir "$SAVE_DIR"
if [ "$DATASET $ARCH $FORGET" = "cifar10 resnet18 4500" ]; then  # by the published attack, beside the published table
  $PYTHON analysis.py --save_dir "$SAVE_DIR" --mia svc --mia_mode published --out "$SAVE_DIR/analysis_svc" > "$SAVE_DIR/svc.log"
  $PYTHON scripts/beside_published.py "$SAVE_DIR/analysis_svc/sparsity.csv" --out "$SAVE_DIR/beside_published.md"
fi
