"""ToW-MIA of every finished run against its retrain, by group, of RUM, and by sparsity: tables and plots.

python analysis_mia.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000
python analysis_mia.py --mem_proxy confidence --unlearn FT,NG,RUM        (plans by their method or kind)
"""

import functools

import arg_parser
import commands
from report import bygroup, bysparsity, contrasts, figures, output, ranks, send


@arg_parser.entry("analysis_mia", __doc__)
def main(args):
    more = [bygroup.mia_tables, bysparsity.mia_tables, ranks.mia_tables]
    page = functools.partial(send.write, command_of=commands.command_of)
    output.end(output.write(args.cfg, contrasts.MIA, figures.mia_charts, more, page))


if __name__ == "__main__":
    main()
