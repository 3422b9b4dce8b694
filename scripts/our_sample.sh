#!/usr/bin/env bash
# Sample-wise unlearning: a random tenth of CIFAR-10 (ResNet-18) and of CIFAR-20 (small ViT); the tables of our_class.sh.
# usage: scripts/our_sample.sh            (a GPU)
#        SIZE=small scripts/our_sample.sh (the same chain on the digits, for two CPU cores)
#        SPARSE=1 scripts/our_sample.sh   (from originals trained under an l1 penalty)
# DATA: folder with the data set's files. SETUPS, SEEDS, METHODS: others, as words. The tables end in SAVE_DIR/table.md.
set -euo pipefail
. "$(dirname "$0")/our_common.sh"

SAVE_DIR=${SAVE_DIR:-runs/our_sample$([ "$SPARSE" = 0 ] || echo _sparse)}
if [ "$SIZE" = full ]; then
  SETUPS=(${SETUPS:-cifar10_sample cifar20_sample})
  SEEDS=(${SEEDS:-1 2 3})
  POINTS=${POINTS:-10000}
  METHODS=(${METHODS:-finetune FT_prune negative_grad relabel relabel_our salun salun_our sfron sfron_our scrub Wfisher
           FisherForgetting our rl_our orth_no_our})
else
  SETUPS=(${SETUPS:-digits})
  SEEDS=(${SEEDS:-1 2})
  POINTS=${POINTS:-1000}
  METHODS=(${METHODS:-finetune relabel relabel_our salun our})
fi

# of a setup: its data and what is forgotten of them, its network and training, its recipe
choose() {
  data=(--setup "$1") forgotten=()
  case $1 in
    cifar10_sample)
      train=(--arch resnet18 --lr 0.1 --aug --epochs 20 --schedule step --decreasing_lr 8,12,16 --lr_gamma 0.2 --warmup 1)
      RECIPE=scripts/recipes/reminiscence_cifar10_resnet18_sample.json ;;
    cifar20_sample)  # the published 9 epochs are far too few from scratch; the drivers say 150
      train=(--arch vit --optimizer adamw --lr 3e-4 --weight_decay 1e-4 --aug --epochs "${EPOCHS:-150}" --schedule cosine
             --warmup 1)
      RECIPE=scripts/recipes/reminiscence_cifar20_vit_sample.json ;;
    digits)
      train=(--arch resnet8s --lr 0.1 --batch_size 64 --epochs "${EPOCHS:-20}")
      data=(--dataset digits) forgotten=(--forget_fraction 0.1)
      RECIPE=scripts/recipes/digits_privacy_resnet8s.json ;;
    *) echo "our_sample.sh: no training is known for the setup $1; write it into choose()" >&2; exit 2 ;;
  esac
}

announce ${#SETUPS[@]} 1
for setup in "${SETUPS[@]}"; do
  choose "$setup"
  for seed in "${SEEDS[@]}"; do
    common=(--save_dir "$SAVE_DIR" --data "$DATA" --seed "$seed" "${data[@]}")
    $PYTHON main_train.py "${common[@]}" "${train[@]}" "${PENALTY[@]}"
    every_method "${common[@]}" ${forgotten[@]+"${forgotten[@]}"}
  done
done
tables
