"""LoTLIP, Figure 4: how many tokens of a text should the text encoder read?

    python experiments/ablate_token_limit.py                         scenes on 2 cores, about 20 minutes: no conclusions
    python experiments/ablate_token_limit.py --only 64               one model, read at every limit: 3 minutes
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_token_limit.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, figure without numbers): long-text retrieval improves with the limit and saturates at 192 to 256 tokens.
Sentences of scenes are half as long as those of the paper's captioners, so the limits for scenes are half of the paper's.

In the paper's form the limit cuts training and evaluation texts. Three sub-captions are rarely longer than 128 tokens (scenes:
64), so a higher limit changes mostly the evaluation texts. The second form tells the two apart: rows "L, evaluation alone" are
one model, trained at 128 (64), and evaluated at each limit; they need no training of their own. Each row has the operations of
a text that fills its limit (the stars of the plot), and the share of evaluation texts that it cuts.
"""

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Place, Point, Sweep, Variant, main
from cornerstone.sweeps.papers.lotlip import FIGURE_4
from cornerstone.sweeps.text_cost import text_cost

PAPER_LIMITS = (32, 64, 77, 96, 128, 192, 256, 512)
SCENES_LIMITS = (16, 32, 40, 48, 64, 96, 128, 256)
TRAINED = 4
"""Which of them the one model is trained at."""
BOTH, ALONE = "training and evaluation", "evaluation alone"
POSITIONS = (
    f"{ALONE!r}: of one model, that was trained at {{}} tokens. Longer texts have positions that this training did not use: "
    "those of a pretrained text tower, or random ones of a new tower, as in scenes."
)


def token_limit(recipe: Recipe) -> Sweep:
    """One point per limit, the usual one also read at all others. Nothing else differs from `recipe`."""
    limits = PAPER_LIMITS if recipe.data.train else SCENES_LIMITS
    usual, others = limits[TRAINED], tuple(limit for limit in limits if limit != limits[TRAINED])
    points = [Point(f"{limit}", recipe.with_text(token_limit=limit), places=(Place(BOTH, limit),)) for limit in limits]
    points[TRAINED] = Point(
        f"{usual}",
        recipe.with_text(token_limit=usual).with_evaluation(token_limits=others),
        places=(Place(BOTH, usual), Place(ALONE, usual)),
        variants=tuple(Variant(f"{limit}, {ALONE}", limit, (Place(ALONE, limit),)) for limit in others),
    )
    notes = (POSITIONS.format(usual),)
    return Sweep(points, f"{usual}", FIGURE_4, notes=notes, asides=text_cost, x_label="token limit")


if __name__ == "__main__":
    main(token_limit)
