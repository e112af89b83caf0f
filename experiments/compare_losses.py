"""SigLIP's pairwise sigmoid loss against the softmax loss of LiT, both trained on raw captions alone.

    python experiments/compare_losses.py                             scenes on 2 cores, about 6 minutes: no conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/compare_losses.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect: close to each other at batches of thousands (Zhai et al. 2023, figure 2: sigmoid ahead below 16k, equal above). Both
train the text tower beside the recipe's locked image tower. Each loss is given three learning rates, of which the one with
the best retrieval on the validation set is kept; without a validation set (your own --eval) both train at the recipe's.
"""

from dataclasses import replace

from cornerstone.recipes import Recipe
from cornerstone.recipes.lotlip import LotlipConfig, with_sub_captions
from cornerstone.recipes.siglip import SiglipConfig
from cornerstone.sweeps import Point, Sweep, main


def losses(recipe: Recipe) -> Sweep:
    """One point a loss, with the recipe's towers, data and steps."""
    if not isinstance(recipe.method, LotlipConfig):
        raise SystemExit("This experiment compares with LiT: give a preset of LoTLIP, such as --preset scenes.")
    softmax = with_sub_captions(recipe.with_text(corner_tokens=0), 0)
    sigmoid = replace(softmax, method=SiglipConfig(recipe.method.image, recipe.method.text.plain()))
    return Sweep([Point.at_best_rate("LiT", softmax), Point.at_best_rate("SigLIP", sigmoid)], baseline="LiT")


if __name__ == "__main__":
    main(losses)
