"""LoTLIP, Figure 1: do salient tokens overshadow the others of a long text, and do long captions bring them back?

    python experiments/probe_overshadowing.py                        scenes on 2 cores, about 8 minutes
    python experiments/probe_overshadowing.py --preset scenes-long --seeds 5
                                                                     scenes on 2 cores, about 2 h: enough for conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/probe_overshadowing.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval swap=s3://bucket/foils --workers 8 --placement.gpus-per-worker 1
                                                                     8 × A100 per trial, from stored features

Expect (the paper draws it, without numbers): trained on short texts alone, a model tells a false sentence about the salient
object, and hardly one about another object (chance: 50 %), wherever the sentences stand; with long texts it tells both. The set
sentence-swap compares each text with the same one in which one sentence is false; 'shuffled' is the same with the sentences in
another order, so that salience and place are apart. Own foils: `cornerstone data import FORMAT SRC --long FIELD --foil FIELD`.
"""

from cornerstone.recipes import Recipe
from cornerstone.recipes.lotlip import with_sub_captions
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import FIGURE_1

SETS = ("sentence-swap", "long-human", "validation")
"""The built-in sets that it is measured on, and the one that chooses the checkpoint."""


def overshadowing(recipe: Recipe) -> Sweep:
    """LiT on short texts, LiT on long ones too, and LoTLIP, with the recipe's towers, data and steps."""
    recipe = recipe.with_evaluation(built_in=SETS)
    lit = recipe.with_text(corner_tokens=0)
    recipes = {"LiT, short only": with_sub_captions(lit, 0), "LiT + long": lit, "LoTLIP": recipe}
    return Sweep([Point(*one) for one in recipes.items()], baseline="LiT, short only", paper=FIGURE_1)


if __name__ == "__main__":
    main(overshadowing)
