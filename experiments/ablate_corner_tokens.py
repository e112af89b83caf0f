"""LoTLIP, Table 3: how many corner tokens does the text encoder need, and does the attention mask matter?

    make demo                                                        points 0, 2 and the control on scenes, 2 cores, 6 minutes
    python experiments/ablate_corner_tokens.py                       all points on scenes, 2 cores, about 15 minutes
    python experiments/ablate_corner_tokens.py --preset scenes-long --seeds 8
                                                                     scenes on 2 cores, about 7 h: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_corner_tokens.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1
                                                                     8 × A100 per trial, from stored features

Expect (paper, 3M, DCI image→text / text→image R@1): 0 corners 47.96/44.92, 2 corners 49.46/47.82, 2 without mask 48.61/47.17.
Corner tokens also change the weight of long captions, raw : long = 1 : (m + 1). The control point trains without corner
tokens, but with the weight that 2 corner tokens give.
"""

from cornerstone.recipes import Recipe
from cornerstone.recipes.lotlip import with_long_loss_times
from cornerstone.sweeps import Claim, Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_3

CLAIM = Claim(
    point="2",
    subject="2 corner tokens",
    control="0, long loss × 3",
    control_subject="the control without corner tokens, but with their weight of long captions,",
    explanation="the larger weight of the long captions",
)


def corner_tokens(recipe: Recipe) -> Sweep:
    """The points of Table 3. They differ from `recipe` in the corner tokens, the mask or the loss weight alone."""

    def point(corners: int, mask: bool = True) -> Point:
        name = f"{corners}" if mask else f"{corners}, no mask"
        return Point(name, recipe.with_text(corner_tokens=corners, corner_mask=mask))

    without = point(0)
    control = Point("0, long loss × 3", with_long_loss_times(without.recipe, 3))
    points = [without, *(point(m) for m in (1, 2, 3, 4)), point(2, mask=False), control]
    return Sweep(points, baseline="0", paper=TABLE_3, claim=CLAIM)


if __name__ == "__main__":
    main(corner_tokens)
