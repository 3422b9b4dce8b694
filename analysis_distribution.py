"""How the forgotten images lie among the others under the original, retrain and every unlearned model: tables and pictures.

python analysis_distribution.py --dataset cifar20 --arch resnet18 --class_to_replace 4
python analysis_distribution.py --features logits --space tsne --tsne_points 37500        (as published)
"""

import arg_parser
from report import distribution, output


@arg_parser.entry("analysis_distribution", __doc__)
def main(args):
    output.end(distribution.write(args.cfg))


if __name__ == "__main__":
    main()
