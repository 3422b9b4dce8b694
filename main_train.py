"""Train an original model: the one that is later asked to forget.

python main_train.py --dataset cifar10 --arch resnet18 --epochs 30 --lr 0.1 --batch_size 256
"""

import arg_parser
import dataset
import models
import trainer
from evaluation import accuracy
from memorization import events
from utils import Run, Runtime, say


@arg_parser.entry("train", __doc__)
def main(args):
    rt = Runtime(args.rt)
    data = dataset.load(args.data, rt)
    with Run(args.run, "train", args.label, args.settings, data_key=data.splits.data_key) as run:
        if not run.done:
            model = models.new(args.model, data, rt, "train")
            seen = events.Events(len(data.images.y), rt, curvature=args.record.record_curvature)
            with run.timed(rt, "train"):
                trainer.train(model, data.loader("train", rt, "train"), args.cfg, rt, run, watch=seen)
            run.seconds |= {"events": seen.seconds, "curvature": seen.curvature_seconds}
            run.save_arrays("events.npz", **seen.arrays(data.candidates.y, data.splits.images_key))
            accuracy.evaluate_original(model, data, rt, run)
            models.save(run, model)
            run.result(**rt.facts())
        else:
            events.check_recorded(run.folder / "events.npz", args.record.record_curvature)
    say(f"{run.summary()}  {accuracy.line(run.values['metrics'])}")


if __name__ == "__main__":
    main()
