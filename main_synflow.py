"""Train a sparse original model that SynFlow pruned at initialisation.

python main_synflow.py --dataset cifar10 --arch resnet18 --rate 0.95
"""

import arg_parser
import dataset
import models
import prune
from evaluation import accuracy, sparsity
from utils import Run, Runtime, say


@arg_parser.entry("synflow", __doc__)
def main(args):
    rt = Runtime(args.rt)
    args.settings["prune"] = settings = args.prune.settings()
    data = dataset.load(args.data, rt)
    label = f"{args.label}-synflow-{100 * settings.sparsity:.4g}"
    facts = {"data_key": data.splits.data_key, "pruning": settings.facts()}
    with Run(args.run, "synflow", label, args.settings, **facts) as run:
        if not run.done:
            model = models.new(args.model, data, rt, "train")
            mask = prune.synflow(run, settings, model, data, rt)
            with run.timed(rt, "train"):
                prune.fit(model, data.loader("train", rt, "train"), args.cfg, rt, run, mask)
            prune.finish(run, model, mask, data, rt)
    say(f"{sparsity.table(run.values['layers'])}\n{run.summary()}  {accuracy.line(run.values['metrics'])}")


if __name__ == "__main__":
    main()
