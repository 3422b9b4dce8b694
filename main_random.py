"""Unlearn by random labels; with a saliency mask this is SalUn.

python main_random.py --unlearn RL --unlearn_lr 0.1 --unlearn_epochs 10 --num_indexes_to_replace 4500 --path runs/mask/RUN
"""

import arg_parser
from main_forget import forget

main = arg_parser.entry("random", __doc__)(forget)

if __name__ == "__main__":
    main()
