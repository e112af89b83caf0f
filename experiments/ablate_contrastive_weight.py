"""LCL, Table 6b: how much should the contrastive loss weigh against the generation loss?

    python experiments/ablate_contrastive_weight.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     documents of scenes, three trials at a time on 2 cores,
                                                                     about 10 minutes: too short for conclusions
    python experiments/ablate_contrastive_weight.py --steps 4000 --seeds 5
                                                                     the same on 2 cores, hours: enough for conclusions
    python experiments/ablate_contrastive_weight.py --transfer classification --seeds 3
                                                                     and a classifier on each frozen tower
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_contrastive_weight.py \\
        --preset lcl-mmc4-b16 --train s3://bucket/mmc4-packed --workers 32 --placement.gpus-per-worker 1

Expect (paper, frozen transfer to COCO, TR@1/CIDEr): λ = 0.05 48.3/87.0, 0.1 48.5/87.5, 0.2 47.6/86.3, 0.5 37.1/66.7; 0 is the
generation loss alone, which collapses (10.3/17.8). Here the frozen tower is probed, and with --transfer transferred as in the
paper, with L_gen in the same row: the paper argues with collapse at an equal text loss. λ = 1 is not in the paper.
"""

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep, TransferOptions, main, with_transfers
from cornerstone.sweeps.papers.lcl import TABLE_6B

WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)


def contrastive_weight(recipe: Recipe, options: TransferOptions = TransferOptions()) -> Sweep:  # noqa: B008 - frozen
    """One point per λ. Nothing else differs from `recipe`."""
    points = [Point(f"{weight:g}", recipe.with_loss(contrastive_weight=weight)) for weight in WEIGHTS]
    return with_transfers(Sweep(points, baseline="0.1", paper=TABLE_6B), options)


if __name__ == "__main__":
    main(contrastive_weight, preset="scenes-lcl", options=TransferOptions)
