"""Unlearn a forget set from a trained model, or retrain without it.

python main_forget.py --unlearn NG --alpha 0.95 --num_indexes_to_replace 4500 --checkpoint runs/train/RUN
python main_forget.py --list
"""

import arg_parser
import dataset
import models
import prune
from evaluation import accuracy
from pruner.mask import both
from unlearn.saliency import Cost, find_mask
from utils import Run, Runtime, say


def forget(args):
    """The recipe; main_random.py has the same with the random-label methods alone."""
    rt, method = Runtime(args.rt), args.entry
    data = dataset.load(args.data, rt, args.forget, args.original.record.get("data_key"))
    model, pruned, loaded = models.load_original(args.original, args.model, data, rt)
    salient, identity, cost = None, args.identity, Cost()
    if args.mask.path is not None:
        salient, facts, cost = find_mask(args.mask.path, model, data, identity["parent"]["sha256"])
        identity = identity | {"mask": facts}
    with Run(args.run, "forget", args.label, args.settings, **identity, **data.splits.keys()) as run:
        if run.done:
            run.values["metrics"] = accuracy.refresh(run, args.evaluation)
        else:
            accuracy.check(data, args.evaluation)
            run.result(original=accuracy.standing(args.original, loaded, model, data, rt))
            run.seconds["mask"], run.read["mask"] = cost
            if args.mask.own_pruning:
                model, pruned = prune.again(args, data, rt, run)
            else:
                if method.fresh:
                    model = models.new(args.model, data, rt, method.name, pruned, model)
                with run.timed(rt, "unlearn"):
                    mask = both(pruned, salient)
                    pruned = both(pruned, method.apply(model, data, args.cfg, rt, run, mask, args.mask.mask_mode))
            accuracy.evaluate(model, data, rt, run, args.evaluation)
            models.save(run, model, pruned)
            run.save_arrays("splits.npz", **data.splits.arrays())
            run.result(**data.splits.facts(), **rt.facts())
    say(f"{run.summary()}  {accuracy.line(run.values['metrics'])}")


main = arg_parser.entry("forget", __doc__)(forget)

if __name__ == "__main__":
    main()
