#!/usr/bin/env bash
# The first half hour on a machine with a GPU, from the repository's root, with CIFAR-10's files (or cifar10.npz) in ./data:
#
#     bash benchmarks/first_minutes.sh 2>&1 | tee first_minutes.log
#
# Blocks stand in the order of their worth; the limits add up to more than half an hour, and a line that fails stops nothing. The
# first three (ten minutes) decide whether the rest means anything. Expected, by reading and counting alone: 300 to 330 kernels a
# step of ResNet-18, of which 4 are foreach (60 or none: look at the strides), a share of the GPU under 25 % for ResNet-20, 10 to
# 15 s for ten epochs of ResNet-18.
set -x
PYTHON=${PYTHON:-python3} DATA=${DATA:-data} RUNS=${RUNS:-runs}

# 1. minute 0: what is there
nvidia-smi; nproc; free -g
$PYTHON -c "import torch as t; print(t.__version__, t.version.cuda, t.backends.cudnn.version(), t.cuda.get_device_name(), t.cuda.mem_get_info())"

# 2. minutes 0 to 7: the tests, then sizes and differences that no test can name beforehand
timeout 300 $PYTHON -m pytest tests/gpu -q --maxfail=15 --durations=5
timeout 120 $PYTHON -m benchmarks.first_minutes probe

# 3. minutes 7 to 10: where a step's time goes; whether cudnn.benchmark earns its place
timeout 180 $PYTHON -m benchmarks.first_minutes speed

# 4. minutes 10 to 15: the chain at full size
CHAIN="--data $DATA --no_download --dataset cifar10 --arch resnet18 --save_dir $RUNS/gpu --seed 1 --no_progress"
FORGET="--num_indexes_to_replace 3000"
timeout 120 $PYTHON main_train.py $CHAIN --epochs 30
timeout 30 $PYTHON generate_mask.py $CHAIN $FORGET --density 0.5
timeout 100 $PYTHON main_forget.py $CHAIN $FORGET --unlearn retrain
for method in "FT --unlearn_epochs 2" "NG --alpha 0.95 --unlearn_epochs 1" "SCRUB --unlearn_epochs 1" "FT_l1 --unlearn_epochs 1"; do
  timeout 40 $PYTHON main_forget.py $CHAIN $FORGET --unlearn $method
done
timeout 40 $PYTHON main_random.py $CHAIN $FORGET --unlearn RL --unlearn_epochs 2 --path $RUNS/gpu
timeout 40 $PYTHON main_random.py $CHAIN $FORGET --unlearn RL_proximal --unlearn_epochs 1
$PYTHON analysis.py --save_dir $RUNS/gpu

# 5. minutes 15 to 18: killed and resumed, to the bit (kill later if no state.pt is there yet)
RESUMED="--data $DATA --no_download --dataset cifar10 --arch resnet20s --epochs 8 --aug --deterministic --seed 3 --no_progress"
timeout 60 $PYTHON main_train.py $RESUMED --resume_every 1 --save_dir $RUNS/whole
timeout -s KILL 12 $PYTHON main_train.py $RESUMED --resume_every 1 --save_dir $RUNS/cut
ls $RUNS/cut/train/*/state.pt
timeout 60 $PYTHON main_train.py $RESUMED --resume_every 1 --save_dir $RUNS/cut
$PYTHON -c "
import glob, sys, torch
a, b = (torch.load(glob.glob(f'{sys.argv[1]}/{name}/train/*/model.pt')[0])['state_dict'] for name in ('whole', 'cut'))
print('bit-identical:', all(torch.equal(a[key], b[key]) for key in a))" $RUNS

# 6. minutes 18 to 22: the same eight models by each engine
POOL="--data $DATA --no_download --dataset cifar10 --arch resnet20s --recipe fast --pool_epochs 1 --models 8 --subset half --no_progress"
number=0
for engine in serial "stack --stack 8 --precision fp32" "stack --stack 8 --graphs --precision fp32" "stack --stack 8" \
              "processes --pool_workers 4"; do
  number=$((number + 1))
  timeout 60 $PYTHON main_memorization.py $POOL --engine $engine --save_dir $RUNS/pool$number
done

# 7. minutes 22 to 26: second order at full size, SynFlow, three runs side by side on the card
for method in "wfisher --solver cg" wfisher ssd; do
  timeout 80 $PYTHON main_forget.py $CHAIN $FORGET --unlearn $method
done
timeout 60 $PYTHON main_synflow.py $CHAIN --rate 0.95 --epochs 1
time (for seed in 11 12 13; do echo $seed; done | xargs -P 3 -I SEED timeout 60 $PYTHON main_train.py ${CHAIN/--seed 1/--seed SEED} --epochs 3)

# 8. minutes 26 to 29: compiled, and a compiled run with its short last batch, of which recompiles are printed
timeout 120 $PYTHON -m benchmarks.first_minutes compiled
TORCH_LOGS=recompiles timeout 60 $PYTHON main_train.py $CHAIN --epochs 2 --compile default
