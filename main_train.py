"""Train an original model: the one that is later asked to forget.

python main_train.py --dataset cifar10 --arch resnet18 --epochs 30 --lr 0.1 --batch_size 256
torchrun --nproc_per_node 4 main_train.py --dataset cifar10 --arch resnet18            (on four GPUs, the same batches)
"""

import arg_parser
import dataset
import models
import trainer
from evaluation import accuracy
from memorization import events
from models import together
from utils import Run, Runtime, say


@arg_parser.entry("train", __doc__)
def main(args):
    rt = Runtime(args.rt, args.ranks)
    with rt.ranks.ahead():
        data = dataset.load(args.data, rt)
    if not rt.ranks.first:
        follow(args, data, rt)
        return
    facts = {"data_key": data.splits.data_key, **together.identity(args.model, data, rt.ranks)}
    with Run(args.run, "train", args.label, args.settings, **facts) as run:
        if not rt.ranks.shared(run.done):
            model, loader, seen = begin(args, data, rt)
            with run.timed(rt, "train"):
                trainer.train(model, loader, args.cfg, rt, run, watch=seen)
            run.seconds |= {"events": seen.seconds, "curvature": seen.curvature_seconds}
            run.save_arrays("events.npz", **seen.arrays(data.candidates.y, data.splits.images_key))
            accuracy.evaluate_original(model, data, rt, run)
            models.save(run, model)
            run.result(**rt.facts())
        else:
            events.check_recorded(run.folder / "events.npz", args.record.record_curvature)
    say(f"{run.summary()}  {accuracy.line(run.values['metrics'])}")


def begin(args, data, rt):
    model = models.new(args.model, data, rt, "train")
    seen = events.Events(len(data.images.y), rt, curvature=args.record.record_curvature)
    return model, data.loader("train", rt, "train"), seen


def follow(args, data, rt):
    """What each process beside the first does: its part of the training, of which it writes nothing."""
    if not rt.ranks.shared(None):
        model, loader, seen = begin(args, data, rt)
        trainer.train(model, loader, args.cfg, rt, None, watch=seen)


if __name__ == "__main__":
    main()
