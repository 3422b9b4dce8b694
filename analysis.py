"""ToW of every finished run against its retrain, by group, of RUM, and by sparsity: tables and plots.

python analysis.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000
python analysis.py --mem_proxy confidence --unlearn FT,NG,RUM        (plans by their method or kind)
"""

import functools

import arg_parser
import commands
from report import bygroup, bysparsity, contrasts, figures, merge, output, published, ranks, scores, send


@arg_parser.entry("analysis", __doc__)
def main(args):
    if args.cfg.merge is not None:
        return output.end(merge.write(args.cfg))
    more = [bygroup.tow_tables, bysparsity.tow_tables, scores.tables, ranks.tow_tables, published.tables]
    page = functools.partial(send.write, command_of=commands.command_of)
    output.end(output.write(args.cfg, contrasts.TOW, figures.tow_charts, more, page))


if __name__ == "__main__":
    main()
