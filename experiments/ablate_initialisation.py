"""LoTLIP, Table 8: both towers from scratch, without and with long texts and corner tokens, beside the locked pretrained tower.

    python experiments/ablate_initialisation.py                      scenes on 2 cores: the direction of large effects
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_initialisation.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, 3M, DCI image→text / text→image R@1 and ImageNet): CLIP 11.67/11.01 and 16.54, with long texts 42.92/42.23 and
23.28, LoTLIP from scratch 43.91/43.83 and 24.65, LoTLIP with pretrained towers (Table 2) 49.46/47.82 and 50.34. Towers from
scratch are encoded online, with the recipe's crop. "CLIP" is, as in the paper, LiT's recipe without pretrained weights. On
scenes the tower from scratch has the sizes of the pretrained one, and the text tower starts at random in all points. Each
point chooses among three learning rates on the validation set; without one (your own --eval) all train at the recipe's.
"""

from cornerstone.recipes import LotlipConfig, Recipe
from cornerstone.recipes.lotlip import from_scratch
from cornerstone.recipes.lotlip_rows import clip, clip_long
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import TABLE_8


def initialisation(recipe: Recipe) -> Sweep:
    """The points of Table 8, and LoTLIP as the recipe has it."""
    if not isinstance(recipe.method, LotlipConfig) or not recipe.method.image.locked:
        raise SystemExit("This experiment needs a locked tower: give a preset of LoTLIP, such as --preset scenes.")
    recipes = {
        "CLIP": clip(recipe),
        "CLIP + long": clip_long(recipe),
        "LoTLIP": from_scratch(recipe),
        "LoTLIP, pretrained": recipe,
    }
    return Sweep([Point.at_best_rate(*one) for one in recipes.items()], baseline="CLIP + long", paper=TABLE_8)


if __name__ == "__main__":
    main(initialisation)
