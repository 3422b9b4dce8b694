#!/usr/bin/env bash
# Class-wise unlearning with classes that no model saw, with and without over-unlearning and replay: accuracy, membership,
# time, and how the forgotten points lie among the others.
# usage: scripts/our_class.sh            (CIFAR-20 and CIFAR-100 without five classes, ResNet-18: a GPU)
#        SIZE=small scripts/our_class.sh (the same chain on the digits, for two CPU cores)
#        SPARSE=1 scripts/our_class.sh   (from originals trained under an l1 penalty)
# DATA: folder with the data set's files. SETUPS, SEEDS, METHODS: others, as words. The tables end in SAVE_DIR/table.md.
set -euo pipefail
. "$(dirname "$0")/our_common.sh"

SAVE_DIR=${SAVE_DIR:-runs/our_class$([ "$SPARSE" = 0 ] || echo _sparse)}
if [ "$SIZE" = full ]; then
  SETUPS=(${SETUPS:-cifar20_5 cifar100_5})
  SEEDS=(${SEEDS:-1 2 3})
  POINTS=${POINTS:-37500}
  METHODS=(${METHODS:-finetune FT_prune negative_grad negative_grad_our amnesiac amnesiac_our badteacher badteacher_our
           ssd_tuning ssd_tuning_our Wfisher Wfisher_our boundary_shrink scrub salun sfron our rl_our orth_no_our})
  TRAIN=(--arch "${ARCH:-resnet18}" --lr 0.1 --batch_size 64 --no_aug --schedule step --lr_gamma 0.2 --warmup 1)
else
  SETUPS=(${SETUPS:-digits})
  SEEDS=(${SEEDS:-1 2})
  POINTS=${POINTS:-1000}
  METHODS=(${METHODS:-amnesiac amnesiac_our badteacher badteacher_our ssd_tuning ssd_tuning_our our rl_our orth_no_our})
  TRAIN=(--arch "${ARCH:-resnet8s}" --lr 0.1 --batch_size 64)
fi

# of a setup: its data and what is forgotten of them, its training, its recipe
choose() {
  data=(--setup "$1") forgotten=()
  case $1 in
    cifar100_5) length=(--epochs 200 --decreasing_lr 60,120,160) RECIPE=scripts/recipes/reminiscence_cifar100_resnet18.json ;;
    cifar20_5)  length=(--epochs 40 --decreasing_lr 15,30,35)    RECIPE=scripts/recipes/reminiscence_cifar20_resnet18.json ;;
    digits)     length=(--epochs "${EPOCHS:-20}")                RECIPE=scripts/recipes/digits_privacy_resnet8s.json
                data=(--dataset digits --ood_classes 1,9) forgotten=(--class_to_replace 4) ;;
    *) echo "our_class.sh: no training is known for the setup $1; write it into choose()" >&2; exit 2 ;;
  esac
}

announce ${#SETUPS[@]} 1
for setup in "${SETUPS[@]}"; do
  choose "$setup"
  for seed in "${SEEDS[@]}"; do
    common=(--save_dir "$SAVE_DIR" --data "$DATA" --seed "$seed" "${data[@]}")
    $PYTHON main_train.py "${common[@]}" "${TRAIN[@]}" "${length[@]}" "${PENALTY[@]}"
    every_method "${common[@]}" ${forgotten[@]+"${forgotten[@]}"}
  done
done
tables
