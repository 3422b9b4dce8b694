#!/usr/bin/env bash
# RUM's main experiment: what makes forgetting hard (ToW of every method on the least, middle and most memorized examples,
# and on chunks of low, middle and high entanglement), and what refining the forget set gains (RUM, RUM^F, shuffle, vanilla).
# usage: scripts/rum_table.sh            (CIFAR-10, ResNet-18, 30 epochs: a GPU)
#        SIZE=small scripts/rum_table.sh (the same chain at a size for two CPU cores)
# DATA: folder with the data set's files or a prepared cifar10.npz. Hyper-parameters: scripts/recipes/*.json (RECIPE).
# SCORES=FILE.npz takes published memorization scores instead of a pool of models. A sweep that was stopped goes on.
set -euo pipefail
cd "$(dirname "$0")/.."

SIZE=${SIZE:-full}
PYTHON=${PYTHON:-.venv/bin/python}
DATASET=${DATASET:-cifar10}
DATA=${DATA:-./data}
SAVE_DIR=${SAVE_DIR:-runs/rum_table}
SCORES=${SCORES:-}

if [ "$SIZE" = full ]; then
  ARCH=${ARCH:-resnet18} EPOCHS=${EPOCHS:-30} GROUP=${GROUP:-1000}
  RECIPE=${RECIPE:-scripts/recipes/cifar10_resnet18.json}
  SEEDS=(${SEEDS:-1 2 3})
  METHODS=(${METHODS:-FT FT_prune GA NG SCRUB RL RL_og})
  PROXIES=(${PROXIES:-confidence bi_acc ho_ret})
  REFINED=(${REFINED:-FT NG SCRUB RL})
  POOL=(--arch "${POOL_ARCH:-resnet18}" --models "${MODELS:-400}" --recipe "${POOL_RECIPE:-paper}")
else
  ARCH=${ARCH:-resnet8s} EPOCHS=${EPOCHS:-20} GROUP=${GROUP:-100}
  RECIPE=${RECIPE:-scripts/recipes/cifar10_small.json}
  SEEDS=(${SEEDS:-1 2})
  METHODS=(${METHODS:-FT GA NG SCRUB RL RL_og})
  PROXIES=(${PROXIES:-confidence bi_acc})
  REFINED=(${REFINED:-FT NG RL})
  POOL=(--arch "${POOL_ARCH:-resnet8s}" --models "${MODELS:-40}" --recipe "${POOL_RECIPE:-fast}" --pool_epochs 20
        --pool_batch 64)  # on few images; the eight epochs of the recipe do not fit them
fi

data=(--save_dir "$SAVE_DIR" --data "$DATA" --dataset "$DATASET")
if [ -n "$SCORES" ]; then
  by_memorization=(--scores "$SCORES")
else
  by_memorization=()
  $PYTHON main_memorization.py "${data[@]}" "${POOL[@]}"
fi

# one method on one forget set; RL is SalUn with its own saliency mask
forget() {
  local method=$1
  shift
  local flags
  flags=$($PYTHON scripts/recipe.py "$RECIPE" "$method")
  if [ "$method" = RL ]; then
    $PYTHON generate_mask.py "$@" --density 0.5
    $PYTHON main_random.py "$@" --unlearn RL $flags --path "$SAVE_DIR"
  else
    $PYTHON main_forget.py "$@" --unlearn "$method" $flags
  fi
}

for seed in "${SEEDS[@]}"; do
  common=("${data[@]}" --arch "$ARCH" --seed "$seed" --epochs "$EPOCHS")
  $PYTHON main_train.py "${common[@]}"
  $PYTHON main_memorization.py "${common[@]}" --score es

  # 1. every method on every group
  for group in low mid high mix; do
    size=$GROUP
    if [ "$group" = mix ]; then size=$((3 * GROUP)); fi
    for by in memorization es; do
      chosen=("${common[@]}" --mem "$group" --num_indexes_to_replace "$size")
      if [ "$by" = es ]; then chosen+=(--mem_proxy es); else chosen+=("${by_memorization[@]}"); fi
      $PYTHON main_forget.py "${chosen[@]}" --unlearn retrain
      $PYTHON main_forget.py "${chosen[@]}" --unlearn raw
      for method in "${METHODS[@]}"; do
        forget "$method" "${chosen[@]}"
      done
    done
  done

  # 2. RUM, RUM^F, shuffle and vanilla, refined by memorization and by every proxy
  for by in memorization "${PROXIES[@]}"; do
    chosen=("${common[@]}" --mem mix --num_indexes_to_replace $((3 * GROUP)))
    case "$by" in
      memorization) chosen+=("${by_memorization[@]}") ;;
      ho_ret | loss_curvature) $PYTHON main_memorization.py "${common[@]}" --mem_proxy "$by" && chosen+=(--mem_proxy "$by") ;;
      *) chosen+=(--mem_proxy "$by") ;;
    esac
    $PYTHON main_forget.py "${chosen[@]}" --unlearn retrain
    $PYTHON main_rum.py "${chosen[@]}" --plan_name rum
    for method in "${REFINED[@]}"; do
      flags=$($PYTHON scripts/recipe.py "$RECIPE" "$method")
      $PYTHON main_rum.py "${chosen[@]}" --unlearn "$method" $flags
      $PYTHON main_rum.py "${chosen[@]}" --plan "$($PYTHON scripts/recipe.py "$RECIPE" "$method" --plan)"
      $PYTHON main_rum.py "${chosen[@]}" --unlearn "$method" $flags --shuffle
      $PYTHON main_rum.py "${chosen[@]}" --unlearn "$method" $flags --plan_name vanilla
    done
  done
done
$PYTHON analysis.py --save_dir "$SAVE_DIR"
$PYTHON analysis_mia.py --save_dir "$SAVE_DIR"
