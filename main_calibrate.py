"""Measure what is fastest on this machine, for later runs to read: threads, memory layout, evaluation batch, precision.

python main_calibrate.py                                          (the common networks, on images of 32 x 32)
python main_calibrate.py --arch resnet50,torchvision:resnet18 --image_size 64
"""

import arg_parser
import calibration
from utils import say


@arg_parser.entry("calibrate", __doc__)
def main(args):
    for arch in args.cfg.arch:
        say(f"{arch}, {args.cfg.image_size} x {args.cfg.image_size}")
        for name, choice, measured in calibration.calibrate(arch, args.cfg):
            say(f"  {name:12s} {choice:14s} {measured}".rstrip())
    say(calibration.busy() + "later runs of these networks on images of this size read it; typed flags win")


if __name__ == "__main__":
    main()
