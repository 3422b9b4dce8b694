"""Plant a trigger, cleanse the model of it by unlearning the stamped images, and measure both: SA and ASR before and after.

python main_backdoor.py --dataset cifar10 --arch resnet18 --unlearn FT --num_indexes_to_replace 4500 --mask trojan.pt
python main_backdoor.py --rate 0 --trigger_size 6 --unlearn FT_prune                             (a dense model)
python main_backdoor.py --rate 0 --unlearn RL --density 0.5                                      (cleansed by SalUn)
"""

import arg_parser
import dataset
import models
from attack import backdoor
from evaluation import accuracy
from pruner.mask import both
from unlearn.saliency import own_mask
from utils import Run, Runtime, say


@arg_parser.entry("backdoor", __doc__)
def main(args):
    rt, method = Runtime(args.rt), args.entry
    case = backdoor.poison(dataset.load(args.data, rt), args.plant)
    trojan = backdoor.planted(args, case, rt)
    facts = {"parent": trojan.facts(), **case.data.splits.keys()}
    with Run(args.run, "backdoor", args.label, args.settings, **facts) as run:
        if not run.done:
            model, pruned, loaded = models.load_original(trojan, args.model, case.data, rt)
            run.result(original=accuracy.standing(trojan, loaded, model, case.data, rt))
            before = backdoor.measure(model, case, rt)
            mask = both(pruned, own_mask(model, args.mask.density, case.data, rt, run, pruned))
            if method.fresh:
                model = models.new(args.model, case.data, rt, method.name, pruned, model)
            with run.timed(rt, "unlearn"):
                pruned = both(pruned, method.apply(model, case.data, args.cfg, rt, run, mask))
            with run.timed(rt, "evaluate"):
                after = backdoor.measure(model, case, rt)
            backdoor.report(run, model, before, after, case)
            models.save(run, model, pruned)
            run.save_arrays("splits.npz", **case.data.splits.arrays())
            run.result(forget_size=len(case.data.splits.forget), **rt.facts())
    say(f"{run.summary()}\n{backdoor.line(run.values)}")


if __name__ == "__main__":
    main()
