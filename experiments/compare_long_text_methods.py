"""LoTLIP, Table 2: ways to learn from long texts with a locked image tower: LiT, Long-CLIP's matching, LoTLIP.

    python experiments/compare_long_text_methods.py                  scenes on 2 cores: the direction of large effects
    python experiments/compare_long_text_methods.py --preset scenes-long --seeds 8
                                                                     scenes on 2 cores: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_long_text_methods.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, 3M, DCI image→text / text→image R@1 and ImageNet): LiT 27.14/24.13 and 43.76, with long texts 47.96/44.92 and
48.87, LiT + Long-CLIP 47.21/46.61 and 46.82, LoTLIP 49.46/47.82 and 50.34. Long-CLIP is its loss alone, as in the paper: the
docstring of `models/long_clip.py` says what is kept. Each point is given three learning rates, of which the one with the best
retrieval on the validation set is kept; without a validation set (your own --eval) all train at the recipe's.
"""

from cornerstone.recipes import LotlipConfig, Recipe
from cornerstone.recipes.lotlip_rows import lit, lit_long, long_clip
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_2


def long_text_methods(recipe: Recipe) -> Sweep:
    """One point a method, with the recipe's towers, data and steps."""
    lotlip = recipe.method
    if not isinstance(lotlip, LotlipConfig) or lotlip.kind != "lotlip":
        raise SystemExit("This experiment compares with LoTLIP: give one of its presets, such as --preset scenes.")
    recipes = {
        "LiT, short only": lit(recipe),
        "LiT + long": lit_long(recipe),
        "LiT + Long-CLIP": long_clip(recipe),
        "LoTLIP": recipe,
    }
    return Sweep([Point.at_best_rate(*one) for one in recipes.items()], baseline="LiT + long", paper=TABLE_2)


if __name__ == "__main__":
    main(long_text_methods)
