"""Saliency masks of a forget set: which weights its loss depends on most.

python generate_mask.py --num_indexes_to_replace 4500 --density 0.5 --checkpoint runs/train/RUN
"""

import arg_parser
import dataset
import models
from evaluation import accuracy
from pruner.mask import largest
from unlearn.saliency import saliency
from utils import Run, Runtime, say


@arg_parser.entry("mask", __doc__)
def main(args):
    rt = Runtime(args.rt)
    data = dataset.load(args.data, rt, args.forget, args.original.record.get("data_key"))
    with Run(args.run, "mask", args.label, args.settings, **args.identity, **data.splits.keys()) as run:
        if not run.done:
            model, pruned, facts = models.load_original(args.original, args.model, data, rt)
            run.result(original=accuracy.standing(args.original, facts, model, data, rt))
            with run.timed(rt, "mask"):
                forget = data.loader("forget", batch_size=data.batch_size)
                masks = largest(saliency(model, forget, args.cfg.saliency_mode), args.cfg.density, pruned)
            for density, mask in masks.items():
                run.save_bare(f"with_{density:g}.pt", mask)
            run.save_arrays("splits.npz", **data.splits.arrays())
            run.result(**data.splits.facts(), **rt.facts())
    say(f"{run.summary()}  densities {', '.join(f'{d:g}' for d in args.cfg.density)}")


if __name__ == "__main__":
    main()
