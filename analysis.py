"""ToW of every finished run against its retrain: table, CSV, Markdown and plots.

python analysis.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000
"""

import arg_parser
from evaluation import plots, report
from utils import say


@arg_parser.entry("analysis", __doc__)
def main(args):
    say(report.write(args.cfg, "tow", report.TOW_COLUMNS, plots.tow_figures))


if __name__ == "__main__":
    main()
