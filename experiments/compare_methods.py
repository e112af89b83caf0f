"""LoTLIP, Tables 4 and 5: methods of pre-training on the same images, zero-shot, beside released models.

    python experiments/compare_methods.py                            scenes on 2 cores: the direction of large effects
    python experiments/compare_methods.py --only LiT LoTLIP          the two whose image tower is locked
    python experiments/compare_methods.py --preset scenes-long --seeds 5
                                                                     scenes on 2 cores, days: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_methods.py \\
        --preset lotlip-100m --scale 100M --train s3://bucket/mix100m-long --only LiT LoTLIP \\
        --eval dci=s3://bucket/dci iiw=s3://bucket/iiw in1k=s3://bucket/in1k-val --workers 8 --placement.gpus-per-worker 1

Expect (paper, 3M, DCI image→text / text→image R@1 and ImageNet): FILIP 10.85/11.36 and 18.69, LaCLIP 14.84/14.71 and 21.50,
SigLIP 11.66/13.11 and 21.28, CLIP (Table 8) 11.67/11.01 and 16.54, LiT 27.14/24.13 and 43.76, LoTLIP 49.46/47.82 and 50.34.

CLIP, FILIP, LaCLIP and SigLIP have both towers from scratch, online, and read short texts alone: so the paper's numbers
suggest, though it does not say. LiT reads short texts too, on the locked pretrained tower. The docstrings of the methods'
modules say what they leave out. LaCLIP needs rewrites of the raw captions (`cornerstone data import FORMAT SRC --rewrite
FIELD`): where your data have none, name the other points with --only. Each point chooses among three learning rates on the
validation set; without one (your own --eval) all train at the recipe's. `compare_long_text_methods.py` compares ways to learn
from long texts.
"""

from dataclasses import dataclass
from typing import Literal

from cornerstone.recipes import LotlipConfig, PairData, Recipe
from cornerstone.recipes.lotlip_rows import clip, filip, laclip, lit, siglip
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip_zero_shot import zero_shot


@dataclass(frozen=True)
class Options:
    """What the measured numbers stand beside."""

    scale: Literal["3M", "12M", "30M", "100M"] = "3M"
    """The paper's scale whose numbers are shown; the released models' are shown beside every scale."""


def methods(recipe: Recipe, options: Options = Options()) -> Sweep:
    """One point a method, with the recipe's data and steps, and towers of its sizes."""
    if not isinstance(recipe.method, LotlipConfig) or not isinstance(recipe.data, PairData):
        raise SystemExit("This experiment compares with LoTLIP: give one of its presets, such as --preset scenes.")
    recipes = {
        "CLIP": clip(recipe),
        "FILIP": filip(recipe),
        "LaCLIP": laclip(recipe),
        "SigLIP": siglip(recipe),
        "LiT": lit(recipe),
        "LoTLIP": recipe,
    }
    points = [Point.at_best_rate(name, one) for name, one in recipes.items()]
    return Sweep(points, baseline="LiT", paper=zero_shot(options.scale))


if __name__ == "__main__":
    main(methods, options=Options)
