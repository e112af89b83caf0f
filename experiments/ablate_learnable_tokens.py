"""LoTLIP, Table 7: corner tokens against register tokens, ordinary learnable tokens whose outputs are thrown away.

    python experiments/ablate_learnable_tokens.py                    scenes on 2 cores: the direction of large effects
    python experiments/ablate_learnable_tokens.py --preset scenes-long --seeds 8
                                                                     scenes on 2 cores: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_learnable_tokens.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, 3M, DCI image→text / text→image R@1 and ImageNet): none 47.96/44.92 and 48.87, 2 register tokens 45.62/44.65 and
48.78, 2 corner tokens 49.46/47.82 and 50.34. Corner tokens also change the weight of long captions, raw : long = 1 : (m + 1),
which register tokens do not: the control trains without learnable tokens, but with that weight.
"""

from cornerstone.recipes import LotlipConfig, Recipe
from cornerstone.recipes.lotlip import with_long_loss_times
from cornerstone.recipes.lotlip_rows import registers
from cornerstone.sweeps import Claim, Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_7

CONTROL = "none, weight of corners"
CLAIM = Claim(
    point="Corner",
    subject="Corner tokens",
    control=CONTROL,
    control_subject="the control without learnable tokens, but with their weight of long captions,",
    explanation="the larger weight of the long captions",
)


def learnable_tokens(recipe: Recipe) -> Sweep:
    """The points of Table 7. They differ from `recipe` in its learnable tokens or the loss weight alone."""
    if not isinstance(recipe.method, LotlipConfig) or not recipe.method.text.extra_features:
        raise SystemExit("This experiment needs corner tokens: give a preset of LoTLIP, such as --preset scenes.")
    none = recipe.with_text(corner_tokens=0)
    weighed = with_long_loss_times(none, 1 + recipe.method.text.corner_tokens)
    points = [
        Point("none", none),
        Point("Register", registers(recipe)),
        Point("Corner", recipe),
        Point(CONTROL, weighed),
    ]
    return Sweep(points, baseline="none", paper=TABLE_7, claim=CLAIM)


if __name__ == "__main__":
    main(learnable_tokens)
