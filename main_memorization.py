"""Score every training example: memorization from a pool of models, a proxy of it, or entanglement.

python main_memorization.py --dataset cifar10 --arch resnet18 --imagenet_arch --models 400       (Feldman and Zhang's estimate)
python main_memorization.py --mem_proxy ho_ret                                                   (a proxy, of an original)
python main_memorization.py --score es                                                           (chunks by entanglement)
"""

import arg_parser
import dataset
from memorization import registry, report
from utils import Run, Runtime, say


@arg_parser.entry("memorization", __doc__)
def main(args):
    rt = Runtime(args.rt)
    data = dataset.load(args.data, rt, data_key=args.original.record.get("data_key") if args.original else None)
    report.check(args, data)
    job = registry.Job(data, rt, args.data, args.model, args.run, args.original)
    if not args.entry.ready(job, args.cfg):
        return
    identity = {**args.identity, **job.identity, **data.splits.keys(), "images_key": data.splits.images_key}
    with Run(args.run, "memorization", args.label, args.settings, **identity) as run:
        if not run.done:
            job.run = run
            with run.timed(rt, "score"):
                arrays = args.entry.apply(job, args.cfg)
            run.save_arrays("scores.npz", **arrays, labels=data.candidates.y, images_key=data.splits.images_key)
            run.result(polarity=args.entry.polarity, **report.compare(run, args, data), **rt.facts())
    say(f"{run.summary()}  {report.line(run, args, data)}")


if __name__ == "__main__":
    main()
