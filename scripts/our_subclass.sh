#!/usr/bin/env bash
# Sub-class-wise unlearning within a super-class of CIFAR-20: each of its five sub-classes in turn is never seen, and each of
# the others is forgotten, with and without over-unlearning and replay; the tables of our_class.sh.
# usage: scripts/our_subclass.sh            (ResNet-18: a GPU)
#        SIZE=small scripts/our_subclass.sh (40 images a sub-class, a ResNet-8, one pair, for two CPU cores)
# DATA: folder with CIFAR-100's files. SUBCLASSES, FORGOTTEN, SEEDS, METHODS: others, as words. The tables end in SAVE_DIR/table.md.
set -euo pipefail
. "$(dirname "$0")/our_common.sh"

SAVE_DIR=${SAVE_DIR:-runs/our_subclass$([ "$SPARSE" = 0 ] || echo _sparse)}
RECIPE=${RECIPE:-scripts/recipes/reminiscence_cifar20_resnet18_subclass.json}
if [ "$SIZE" = full ]; then
  SUBCLASSES=(${SUBCLASSES:-4 30 55 72 95})  # beaver, dolphin, otter, seal, whale: super-class 0
  FORGOTTEN=(${FORGOTTEN:-4 30 55 72 95})
  SEEDS=(${SEEDS:-1})
  POINTS=${POINTS:-10000}
  METHODS=(${METHODS:-finetune negative_grad negative_grad_our amnesiac amnesiac_our badteacher badteacher_our
           ssd_tuning ssd_tuning_our Wfisher Wfisher_our our})
  TRAIN=(--arch "${ARCH:-resnet18}" --lr 0.1 --batch_size 64 --no_aug --epochs 40 --schedule step --decreasing_lr 15,30,35
         --lr_gamma 0.2 --warmup 1)
else
  SUBCLASSES=(${SUBCLASSES:-30})
  FORGOTTEN=(${FORGOTTEN:-4})
  SEEDS=(${SEEDS:-1 2})
  POINTS=${POINTS:-2000}
  METHODS=(${METHODS:-amnesiac amnesiac_our ssd_tuning ssd_tuning_our our})
  TRAIN=(--arch "${ARCH:-resnet8s}" --train_per_class 200 --lr 0.1 --batch_size 64 --no_aug --epochs "${EPOCHS:-15}")
fi

announce ${#SUBCLASSES[@]} $(( ${#FORGOTTEN[@]} > 1 ? ${#FORGOTTEN[@]} - 1 : 1 ))
for seed in "${SEEDS[@]}"; do
  for unseen in "${SUBCLASSES[@]}"; do
    common=(--save_dir "$SAVE_DIR" --data "$DATA" --seed "$seed" --setup cifar20_sub --ood_subclass "$unseen")
    $PYTHON main_train.py "${common[@]}" "${TRAIN[@]}" "${PENALTY[@]}"
    for gone in "${FORGOTTEN[@]}"; do
      if [ "$gone" != "$unseen" ]; then every_method "${common[@]}" --subclass_to_replace "$gone"; fi
    done
  done
done
tables
