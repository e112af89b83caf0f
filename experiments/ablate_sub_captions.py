"""LoTLIP, Figures 2 and 5: how many sentences of a long caption should a training text contain?

    python experiments/ablate_sub_captions.py                        scenes on 2 cores, about 8 minutes: no conclusions
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_sub_captions.py \\
        --preset lotlip-3m --train s3://bucket/cc3m-long --eval dci=s3://bucket/dci --workers 8 --placement.gpus-per-worker 1

Expect (paper, figures without numbers): from 0 (raw captions alone) to 1 every task improves (Table 2: ImageNet 43.76 →
48.87). Beyond 1, long-text retrieval improves and is flat after 3, while short-text retrieval and classification get worse,
more slowly with corner tokens than without.
"""

from cornerstone.recipes import Recipe
from cornerstone.recipes.lotlip import with_sub_captions
from cornerstone.sweeps import Point, Sweep, main
from cornerstone.sweeps.papers.lotlip import FIGURE_2


def sub_captions(recipe: Recipe) -> Sweep:
    """One point per number of sentences. Nothing else differs from `recipe`."""
    points = [Point(f"{k}", with_sub_captions(recipe, k)) for k in (0, 1, 2, 3, 4, 6)]
    return Sweep(points, baseline="3", paper=FIGURE_2)


if __name__ == "__main__":
    main(sub_captions)
