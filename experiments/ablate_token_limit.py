"""LoTLIP, Figure 4: how many tokens of a text should the text encoder read?

    python experiments/ablate_token_limit.py                         scenes on 2 cores, about 10 minutes: no conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_token_limit.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, figure without numbers): long-text retrieval improves with the limit and saturates at 192 to 256 tokens.
Sentences of scenes are half as long as those of the paper's captioners, so the limits for scenes are half of the paper's.
The limit cuts training and evaluation texts. Three sub-captions are rarely longer than 128 tokens (scenes: 64); a higher
limit therefore changes mostly the evaluation texts.
"""

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import FIGURE_4

PAPER_LIMITS = (32, 64, 77, 96, 128, 192, 256, 512)
SCENES_LIMITS = (16, 32, 40, 48, 64, 96, 128, 256)


def token_limit(recipe: Recipe) -> Sweep:
    """One point per limit. Nothing else differs from `recipe`."""
    limits = PAPER_LIMITS if recipe.data.train else SCENES_LIMITS
    points = [Point(f"{limit}", recipe.with_text(token_limit=limit)) for limit in limits]
    return Sweep(points, baseline=f"{limits[4]}", paper=FIGURE_4)


if __name__ == "__main__":
    main(token_limit)
