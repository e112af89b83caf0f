"""LoTLIP, Table 3: how many corner tokens does the text encoder need, and does the attention mask matter?

    make demo                                                        points 0, 2 and one control on scenes, 2 cores, 6 minutes
    python experiments/ablate_corner_tokens.py                       all points on scenes, 2 cores, about 30 minutes
    python experiments/ablate_corner_tokens.py --preset scenes-long --seeds 8
                                                                     scenes on 2 cores, about 13 h: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_corner_tokens.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1
                                                                     8 × A100 per trial, from stored features

Expect (paper, 3M, DCI image→text / text→image R@1): 0 corners 47.96/44.92, 2 corners 49.46/47.82, 2 without mask 48.61/47.17.
Corner tokens also change the weight of long captions, raw : long = 1 : (m + 1). Two forms tell the tokens from the weight, for
every m: a control trains without corner tokens, but with the weight that m of them give ("0, long loss × (m + 1)"), and "m,
balance equal" trains with m corner tokens, but weighs raw and long captions 1 : 1. The plot has a curve for each, over m.
"""

from cornerstone.recipes import Recipe
from cornerstone.recipes.lotlip import with_long_loss_times
from cornerstone.sweeps import Claim, Place, Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_3

COUNTS = (1, 2, 3, 4)
CLAIM = Claim(
    point="2",
    subject="2 corner tokens",
    control="0, long loss × 3",
    control_subject="the control without corner tokens, but with their weight of long captions,",
    explanation="the larger weight of the long captions",
)


def corner_tokens(recipe: Recipe) -> Sweep:
    """The points of Table 3 with their controls. They differ from `recipe` in corner tokens, mask or loss weights alone."""
    corners = {m: recipe.with_text(corner_tokens=m, corner_mask=True) for m in (0, *COUNTS)}
    forms = ("corner tokens", "no mask", "weight alone", "equal weights")
    points = [Point(f"{m}", one, places=(Place(forms[0], m),)) for m, one in corners.items()]
    points[0] = Point("0", corners[0], places=tuple(Place(form, 0) for form in forms if form != "no mask"))
    points.append(Point("2, no mask", corners[2].with_text(corner_mask=False), places=(Place("no mask", 2),)))
    for m in COUNTS:
        weighed = with_long_loss_times(corners[0], m + 1)
        points.append(Point(f"0, long loss × {m + 1}", weighed, places=(Place("weight alone", m),)))
    for m in COUNTS:
        equal = corners[m].with_loss(balance="equal")
        points.append(Point(f"{m}, balance equal", equal, places=(Place("equal weights", m),)))
    return Sweep(points, baseline="0", paper=TABLE_3, claim=CLAIM, x_label="corner tokens m")


if __name__ == "__main__":
    main(corner_tokens)
