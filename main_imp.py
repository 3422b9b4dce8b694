"""Train a sparse original model: one-shot (OMP) or iterative (IMP) magnitude pruning with rewinding, or random pruning.

python main_imp.py --dataset cifar10 --arch resnet18 --rewind_epoch 8 --rate 0.95                        (OMP)
python main_imp.py --dataset cifar10 --arch resnet18 --rewind_epoch 8 --rate 0.2 --pruning_times 14      (IMP)
python main_imp.py --dataset cifar10 --arch resnet18 --rewind_epoch 8 --sparsity 0                       (dense)
"""

import arg_parser
import dataset
import models
from evaluation import accuracy, sparsity
from prune import Rounds
from pruner.plan import Plan
from utils import Run, Runtime, say


@arg_parser.entry("imp", __doc__)
def main(args):
    rt = Runtime(args.rt)
    plan = Plan.of(args.prune, args.cfg.epochs, args.cfg.schedule)
    args.settings["prune"] = plan.settings(args.prune)
    data = dataset.load(args.data, rt)
    facts = {"data_key": data.splits.data_key, "pruning": plan.facts()}
    with Run(args.run, "imp", f"{args.label}-{plan.name()}", args.settings, **facts) as run:
        if not run.done:
            rounds = Rounds(plan, args.cfg, args, data, rt, rewind_pth=args.prune.rewind_pth)
            model, mask = rounds.follow()
            run.seconds.update(rounds.seconds)
            run.read.update(rounds.read)
            sparsity.report(run, model, mask)
            models.save(run, model, mask)
            run.result(rounds=rounds.rows, metrics=rounds.rows[-1]["metrics"], **rt.facts())
    say(f"{sparsity.table(run.values['layers'])}\n{run.summary()}  {accuracy.line(run.values['metrics'])}")


if __name__ == "__main__":
    main()
