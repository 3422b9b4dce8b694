"""ToW-MIA and membership inference of every finished run against its retrain: table, CSV, Markdown and plots.

python analysis_mia.py --dataset cifar10 --arch resnet18 --no_aug --unlearn NG --num_indexes_to_replace 3000
"""

import arg_parser
from evaluation import plots, report
from utils import say


@arg_parser.entry("analysis_mia", __doc__)
def main(args):
    say(report.write(args.cfg, "tow_mia", report.MIA_COLUMNS, plots.mia_figures))


if __name__ == "__main__":
    main()
