"""LoTLIP, Figure 4: how many tokens should the text encoder read?

    python experiments/ablate_token_limit.py                         scenes on 2 cores, about 10 minutes: shows the path
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_token_limit.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, figure without numbers): long-text retrieval rises with the limit and saturates at 192 to 256 tokens. A
sentence of scenes is half as long as one of the paper's captioners, so that its limits stand for twice as many tokens.
The limit cuts training and evaluation texts alike; three sub-captions rarely pass 128 tokens (scenes: 64), so that beyond it
acts mostly on the evaluation texts.
"""

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import FIGURE_4

PAPER_LIMITS = (32, 64, 77, 96, 128, 192, 256, 512)
SCENES_LIMITS = (16, 32, 40, 48, 64, 96, 128, 256)


def token_limit(recipe: Recipe) -> Sweep:
    """One point a limit, all else as in `recipe`."""
    limits = PAPER_LIMITS if recipe.data.train else SCENES_LIMITS
    points = [Point(f"{limit}", recipe.with_text(token_limit=limit)) for limit in limits]
    return Sweep(points, baseline=f"{limits[4]}", paper=FIGURE_4)


if __name__ == "__main__":
    main(token_limit)
