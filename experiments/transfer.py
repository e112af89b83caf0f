"""LCL, Tables 3 and 4: what pre-trained image towers are worth for classification, retrieval, captions and dialogue.

    python experiments/transfer.py --placement.decode-actors 1 --placement.cpus-per-decode-actor 0.1
                                                                     LCL is pre-trained on scenes first, then each task is
                                                                     learnt on its tower, frozen and trained: 63 short trials
    python experiments/transfer.py --tasks dialogue --models "mine=runs/RUN/model" "random=random:vit_tiny_patch16_224"
                                                                     Table 4 alone, of towers that are there, on scenes
    ray job submit --runtime-env ray_jobs/runtime_env.yaml -- python experiments/transfer.py \\
        --models "LCL LAION=s3://bucket/runs/RUN/model" "OpenCLIP=timm:vit_large_patch14_clip_224.laion400m_e32" \\
        --classification.train s3://bucket/in1k-train --classification.eval in1k=s3://bucket/in1k-val \\
        --retrieval.train s3://bucket/cc15m --retrieval.eval coco=s3://bucket/coco flickr30k=s3://bucket/flickr30k \\
        --caption.train s3://bucket/laion-coco --caption.eval coco=s3://bucket/coco nocaps=s3://bucket/nocaps \\
        --dialogue.alignment s3://bucket/llava-558k --dialogue.train s3://bucket/llava-665k \\
        --dialogue.language-model lmsys/vicuna-7b-v1.5 --dialogue.eval s3://bucket/gqa s3://bucket/pope \\
        --workers 8 --placement.gpus-per-worker 1

Expect (paper, ViT-L/14, frozen and full, IN-1k top-1): LCL on LAION 82.2 and 86.1, OpenCLIP 82.1 and 86.2; COCO CIDEr of LCL on
LAION + MMC4 113.7 and 130.9, GQA 57.4 and 58.8. Seeds are those of the heads; a tower that is pre-trained here is trained again
with each, and --lr and --steps are those of its pre-training. The floor is a random tower, frozen; the ceiling the same
architecture trained on the task alone. Your own data are trained on for the paper's steps (--caption.steps and the like).
Captions are written by a new language model, the paper's by a pretrained one: compare them within this table. Dialogue has
LLaVA-1.5's two stages; `cornerstone data import llava` makes its data and `cornerstone data questions` its benchmarks.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from cornerstone.recipes import Recipe
from cornerstone.recipes.transfers import TRANSFER_TASKS, TransferTask
from cornerstone.sweeps import Point, Sweep, Transfers, main
from cornerstone.sweeps.papers.lcl import transfer_table
from cornerstone.sweeps.transfers import CEILING, FLOOR, NOTES
from cornerstone.transfer.towers import architecture_of, tower_recipe

HERE = "LCL pre-trained here"


@dataclass(frozen=True)
class Options(Transfers):
    """The towers, the tasks, and whether the towers are trained too."""

    models: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME=]MODEL ..")] = ()
    """Runs or their folders `model`, timm:NAME, random:NAME, folders of timm; none: the preset is pre-trained first."""
    tasks: tuple[TransferTask, ...] = TRANSFER_TASKS
    """What each tower is transferred to."""
    modes: tuple[Literal["frozen", "full"], ...] = ("frozen", "full")
    """Whether the tower stays as it is, or is trained too."""
    image_size: int = 0
    """Side of the images in pixels, for towers of timm; 0: as they were trained."""


def transfer(recipe: Recipe, options: Options = Options()) -> Sweep:
    """A row for each tower and mode, made of a point for each task. Without models, `recipe` is pre-trained first."""
    points: list[Point] = []
    if not options.models:
        if (image := recipe.method.image_tower) is None:
            raise SystemExit("The preset has no image tower: give another one, or --models.")
        follow_ups = tuple(
            options.follow_up(task, image, mode == "frozen", f"{HERE}, {mode}", f"{task}, {mode}")
            for mode in options.modes
            for task in options.tasks
        )
        points.append(Point(HERE, recipe, follow_ups=follow_ups))
    else:
        named = [(name or model, model) for name, _, model in (one.rpartition("=") for one in options.models)]
        towers = {name: tower_recipe(model, options.image_size) for name, model in named}
        image = next(iter(towers.values()))
        for mode in options.modes:
            for name, tower in towers.items():
                points += options.points(f"{name}, {mode}", options.tasks, tower, mode == "frozen")
    architecture = architecture_of(image)
    points += options.points(FLOOR, options.tasks, architecture, frozen=True)
    points += options.points(CEILING, options.tasks, architecture, frozen=False)
    return Sweep(points, baseline=FLOOR, paper=transfer_table(options.tasks), notes=NOTES[1:])


if __name__ == "__main__":
    main(transfer, preset="scenes-lcl", seeds=3, options=Options)
