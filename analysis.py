"""ToW of every finished run against its retrain, by group, and of RUM: tables and plots.

python analysis.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000
python analysis.py --mem_proxy confidence --unlearn FT,NG,RUM        (plans by their method or kind)
"""

import arg_parser
from evaluation import bygroup, plots, report, scores
from utils import say


@arg_parser.entry("analysis", __doc__)
def main(args):
    say(report.write(args.cfg, "tow", report.TOW_COLUMNS, plots.tow_figures, [bygroup.tow_tables, scores.tables]))


if __name__ == "__main__":
    main()
