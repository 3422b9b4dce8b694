# What our_class.sh, our_subclass.sh and our_sample.sh share; they read it in, nobody runs it. A sweep that was stopped goes on.
# They set: SIZE, RECIPE, METHODS, PYTHON, SAVE_DIR (of a sparse original another folder), and say what is forgotten.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SIZE=${SIZE:-full}
PYTHON=${PYTHON:-.venv/bin/python}
DATA=${DATA:-./data}
SPARSE=${SPARSE:-0}                    # 1: originals are trained under an l1 penalty, as the published Wfisher_our wants them
ALPHA=${ALPHA:-5e-5}
if [ "$SPARSE" = 1 ]; then PENALTY=(--alpha "$ALPHA"); else PENALTY=(--alpha 0); fi
if [ "$SIZE" != full ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi  # images this small gain nothing from a second

# one method on one forget set, by the recipe, or by the method's own defaults where it has none
forget() {
  local method=$1
  shift
  local flags
  flags=$($PYTHON scripts/recipe.py "$RECIPE" "$method" --or_defaults)
  case $method in
    salun | sfron | salun_our | sfron_our)  # under a mask of the weights that matter to the forget set
      $PYTHON generate_mask.py "$@" --density 0.5
      $PYTHON main_forget.py "$@" --unlearn "$method" $flags --path "$SAVE_DIR" ;;
    *) $PYTHON main_forget.py "$@" --unlearn "$method" $flags ;;
  esac
}

# the original as it is, the model retrained as the original was trained, and every method, on one forget set
every_method() {
  $PYTHON main_forget.py "$@" --unlearn raw
  $PYTHON main_forget.py "$@" --unlearn retrain
  for method in "${METHODS[@]}"; do
    forget "$method" "$@"
  done
}

# $1: originals, $2: forget sets of each
announce() {
  echo "$(( ${#SEEDS[@]} * $1 * (1 + $2 * (2 + ${#METHODS[@]})) )) runs and masks at most;" \
       "at full size $(( ${#SEEDS[@]} * $1 * (1 + $2) )) of them are whole trainings: a GPU"
}

tables() {
  $PYTHON analysis.py --save_dir "$SAVE_DIR"
  $PYTHON analysis_mia.py --save_dir "$SAVE_DIR"
  # as published: t-SNE of the logits; penultimate features beside it, which the overlap of classes in the logits hides
  $PYTHON analysis_distribution.py --save_dir "$SAVE_DIR" --out "$SAVE_DIR/analysis" --tsne_points "$POINTS"
  $PYTHON scripts/our_table.py "$SAVE_DIR/analysis" --out "$SAVE_DIR/table"
}
