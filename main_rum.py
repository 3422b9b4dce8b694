"""RUM: refine the forget set into groups, then unlearn group by group by a plan.

python main_rum.py --unlearn NG --mem mix --num_indexes_to_replace 3000          (RUM^F: one method on each group)
python main_rum.py --plan_name rum --mem mix --num_indexes_to_replace 3000       (RUM: the published choice per group)
python main_rum.py --plan "low:raw mid:FT(unlearn_lr=0.1) high:RL" --mem mix --num_indexes_to_replace 3000
"""

import arg_parser
import dataset
import models
from evaluation import accuracy
from unlearn import plan, rum
from utils import Run, Runtime, say


@arg_parser.entry("rum", __doc__)
def main(args):
    rt = Runtime(args.rt)
    todo = plan.make(args.plan, args.entry, getattr(args, "cfg", None), args.protocol.protocol)
    forget = plan.forget_of(args.plan, args.forget)
    data = dataset.load(args.data, rt, forget, args.original.record.get("data_key"), thirds=True)
    common = {name: args.settings[name] for name in ("protocol", "data", "model", "rt")}
    chain = rum.Chain(args.original, args.run, args.model, common, args.identity)
    asked = rum.requests(todo, data, args.forget)
    for request in asked:
        accuracy.check(request.data, args.evaluation)
    for request in asked:
        facts = {"plan": todo.facts(), "request": request.facts(), "before": list(chain.told)}
        with Run(args.run, "rum", args.label, args.settings, **args.identity, **facts, **request.data.splits.keys()) as run:
            if run.done:
                plan.relabel(run, args.plan)
                run.values["metrics"] = accuracy.refresh(run, args.evaluation)
            else:
                chain.follow(todo, request, rt)
                model, pruned = chain.model(request.data, rt)
                run.seconds.update(chain.seconds)
                run.read.update(chain.read)
                run.result(**chain.outcome())
                accuracy.evaluate(model, request.data, rt, run, args.evaluation)
                models.save(run, model, pruned)
                run.save_arrays("splits.npz", **request.arrays())
                run.result(**request.data.splits.facts(), **rt.facts())
        chain.close(todo, request, run)
        say(f"{todo.name}: {run.summary()}  {accuracy.line(run.values['metrics'])}")


if __name__ == "__main__":
    main()
