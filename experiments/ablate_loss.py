"""LCL, Table 6a: the contrastive loss alone, the generation loss alone, and both.

    python experiments/ablate_loss.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     documents of scenes, three trials at a time on 2 cores,
                                                                     about 5 minutes: too short for conclusions
    python experiments/ablate_loss.py --recipe.data.scenes.redundancy 1
                                                                     every fact behind an image can be copied from before it
    python experiments/ablate_loss.py --transfer classification retrieval caption --seeds 3
                                                                     and what each frozen tower is worth for other tasks
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/ablate_loss.py \\
        --preset lcl-mmc4-b16 --train s3://bucket/mmc4-packed --workers 32 --placement.gpus-per-worker 1

Expect (paper, frozen transfer to COCO, TR@1/IR@1 and CIDEr): Con. only 46.4/32.7 and 82.7, Gen. only 10.3/5.4 and 17.8, LCL
48.5/34.5 and 87.5. Without --transfer the frozen tower is only probed. With it, your own data: --retrieval.train DIR
--retrieval.eval coco=DIR, --caption.train DIR --caption.eval coco=DIR.
"""

from cornerstone.recipes import Recipe
from cornerstone.sweeps import Point, Sweep, TransferOptions, main, with_transfers
from cornerstone.sweeps.papers.lcl import TABLE_6A


def losses(recipe: Recipe, options: TransferOptions = TransferOptions()) -> Sweep:  # noqa: B008 - frozen
    """LCL at the recipe's λ, and each of its two losses alone."""
    points = [
        Point("Con. only", recipe.with_loss(contrastive_weight=1.0, generation_weight=0.0)),
        Point("Gen. only", recipe.with_loss(contrastive_weight=0.0)),
        Point("LCL", recipe),
    ]
    return with_transfers(Sweep(points, baseline="LCL", paper=TABLE_6A), options)


if __name__ == "__main__":
    main(losses, preset="scenes-lcl", options=TransferOptions)
