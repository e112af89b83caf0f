"""The printed numbers of LCL: Tables 3 and 4 by transfer of ViT-L/14, Tables 1, 2, 5 and 6 by frozen transfer of ViT-B/16."""

from __future__ import annotations

from collections.abc import Sequence

from cornerstone.sweeps.paper_table import PaperTable
from cornerstone.sweeps.papers.sets import ALIASES

_SOURCE = "ViT-B/16, 2B images, frozen transfer; R@1 and top-1 in %, BLEU@4 and CIDEr × 100"
_TRANSFER = (
    "IN-1k",
    "COCO TR@1",
    "COCO IR@1",
    "Flickr TR@1",
    "Flickr IR@1",
    "COCO B@4",
    "COCO C",
    "NoCaps B@4",
    "NoCaps C",
)
_MEASURES = (
    *(("in1k", "top1"), ("mscoco", "i2t_r1"), ("mscoco", "t2i_r1"), ("flickr30k", "i2t_r1"), ("flickr30k", "t2i_r1")),
    *(("mscoco", "bleu4"), ("mscoco", "cider"), ("nocaps", "bleu4"), ("nocaps", "cider")),
)
STAND_INS = {"class": "in1k", "short": "mscoco"}
STAND_IN_NOTE = "On scenes, class stands in for ImageNet and short for COCO: compare the trends, not the values."
_TABLE_6 = ("COCO TR@1", "COCO IR@1", "COCO B@4", "COCO C")
_MEASURES_6 = (("mscoco", "i2t_r1"), ("mscoco", "t2i_r1"), ("mscoco", "bleu4"), ("mscoco", "cider"))
_SCENES = (
    "The printed numbers are frozen transfers. Without --transfer the frozen tower is only probed (linear probe and k-NN of "
    "its mean patch): compare trends, not values.",
    "The paper argues with collapse at an equal text loss: L_gen stands beside every transfer number.",
)

TABLE_1 = PaperTable(
    title="LCL, Table 1: pre-training on MMC4",
    source=_SOURCE,
    columns=_TRANSFER,
    measures=_MEASURES,
    rows={
        "CLIP": (74.8, 46.4, 32.5, 76.2, 60.0, 23.9, 82.9, 29.6, 78.4),
        "CoCa": (75.4, 48.6, 34.3, 76.5, 61.9, 23.7, 84.8, 30.0, 80.5),
        "BLIP2": (74.5, 46.5, 31.3, 74.9, 57.8, 23.7, 82.9, 29.4, 78.1),
        "BEiT3": (73.3, 45.1, 30.6, 73.2, 57.1, 23.3, 81.4, 29.5, 76.7),
        "Flamingo": (24.0, 10.6, 5.6, 17.7, 10.8, 8.7, 18.1, 15.0, 18.5),
        "Emu": (5.7, 2.3, 1.4, 4.8, 2.7, 0.3, 4.4, 0.6, 4.6),
        "LCL": (75.2, 48.5, 34.5, 76.3, 60.4, 24.4, 87.5, 31.0, 82.5),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    notes=_SCENES,
    trends=(
        "LCL is level with the best methods on pairs, and better in captioning.",
        "Flamingo and Emu, which only generate, collapse, although their text loss is close to LCL's.",
    ),
)

TABLE_2 = PaperTable(
    title="LCL, Table 2: pre-training on LAION-400M",
    source=_SOURCE,
    columns=_TRANSFER,
    measures=_MEASURES,
    rows={
        "CLIP": (75.0, 47.2, 34.2, 76.5, 59.8, 24.1, 84.1, 30.0, 78.8),
        "CoCa": (75.2, 48.6, 34.8, 76.9, 61.4, 24.6, 88.2, 30.4, 82.9),
        "BLIP2": (74.0, 47.4, 31.5, 75.9, 57.9, 23.6, 85.0, 30.0, 77.8),
        "LCL": (75.1, 48.3, 34.3, 76.8, 59.6, 24.4, 88.1, 31.3, 84.2),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    notes=_SCENES,
    trends=("On pairs, with the image before or after its caption, LCL is comparable to the methods for pairs.",),
)

TABLE_3 = PaperTable(
    title="LCL, Table 3: transfer of pre-trained checkpoints",
    source="ViT-L/14, 13B images, frozen and full transfer; R@1 and top-1 in %, BLEU@4 and CIDEr × 100",
    columns=_TRANSFER,
    measures=_MEASURES,
    rows={
        "OpenAI CLIP, frozen": (83.7, 61.7, 48.2, 89.0, 75.8, 32.1, 116.0, 35.5, 108.9),
        "OpenCLIP, frozen": (82.1, 59.5, 46.0, 86.9, 74.2, 31.0, 111.5, 34.8, 106.0),
        "LCL LAION, frozen": (82.2, 59.6, 46.2, 86.7, 74.0, 31.4, 112.3, 35.0, 106.7),
        "LCL LAION + MMC4, frozen": (82.0, 60.0, 46.0, 87.6, 74.6, 32.0, 113.7, 35.1, 107.1),
        "OpenAI CLIP, full": (87.4, 62.1, 49.6, 90.3, 77.9, 39.5, 132.7, 41.4, 116.9),
        "OpenCLIP, full": (86.2, 61.7, 47.5, 87.7, 76.3, 38.6, 128.9, 39.9, 112.7),
        "LCL LAION, full": (86.1, 61.9, 47.5, 87.6, 76.1, 39.1, 129.7, 40.2, 113.5),
        "LCL LAION + MMC4, full": (86.1, 62.2, 47.6, 88.1, 76.2, 39.5, 130.9, 40.6, 113.8),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    trends=(
        "At equal data LCL is level with CLIP; MMC4 beside LAION helps most in captioning.",
        "Full transfer is above frozen transfer in every column.",
    ),
)

TABLE_4 = PaperTable(
    title="LCL, Table 4: transfer to dialogue",
    source="ViT-L/14, 13B images, LLaVA-1.5 with a language model of 7B; VQAv2 on test-dev, MME in points of perception",
    columns=("VQAv2", "GQA", "VizWiz", "SQA", "POPE", "MME", "MMB", "SEED (no header)"),
    measures=tuple(
        (name, {"pope": "f1", "mme": "perception"}.get(name, "accuracy"))
        for name in ("vqav2", "gqa", "vizwiz", "scienceqa", "pope", "mme", "mmbench", "seed")
    ),
    rows={
        "OpenAI CLIP, frozen": (77.1, 61.7, 44.4, 71.1, 84.6, 1486.9, 65.1, 64.6),
        "OpenCLIP, frozen": (68.7, 57.0, 39.5, 69.0, 81.8, 1266.2, 54.2, 55.8),
        "LCL LAION + MMC4, frozen": (70.7, 57.4, 41.4, 69.7, 81.7, 1291.7, 55.3, 56.5),
        "OpenAI CLIP, full": (79.0, 62.8, 46.8, 71.8, 85.7, 1576.8, 68.9, 67.9),
        "OpenCLIP, full": (71.5, 58.6, 42.2, 70.4, 82.5, 1345.4, 58.5, 59.5),
        "LCL LAION + MMC4, full": (73.4, 58.8, 44.2, 71.0, 82.5, 1382.3, 59.5, 60.3),
    },
    stand_ins={"conversations": "gqa"},
    stand_in_note="On scenes, conversations stand in for GQA: compare the trends, not the values.",
    notes=("The last column has no header in the paper; by its values it is SEED-Bench's image part.",),
    trends=("LCL with MMC4 is above OpenCLIP on most benchmarks, frozen and full; full transfer is above frozen.",),
)


def transfer_table(tasks: Sequence[str]) -> PaperTable:
    """What the paper prints of transfers to some tasks: Table 4 of dialogue, Table 3 of the others, or both."""
    if set(tasks) == {"dialogue"}:
        return TABLE_4
    return TABLE_3.beside(TABLE_4) if "dialogue" in tasks else TABLE_3


TABLE_5 = PaperTable(
    title="LCL, Table 5: pre-training data",
    source=_SOURCE,
    columns=_TRANSFER,
    measures=_MEASURES,
    rows={
        "LAION": (75.1, 48.3, 34.3, 76.8, 59.6, 24.4, 88.1, 31.3, 84.2),
        "MMC4": (75.2, 48.5, 34.5, 76.3, 60.4, 24.4, 87.5, 31.0, 82.5),
        "OBELICS": (73.9, 47.0, 33.2, 75.1, 58.7, 23.3, 84.8, 29.9, 77.6),
        "LAION + MMC4": (75.8, 49.4, 35.3, 77.7, 61.1, 25.1, 88.9, 31.4, 84.9),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    notes=_SCENES,
    trends=("Interleaved data alone reach what pairs reach; pairs and documents together are best.",),
)

TABLE_6A = PaperTable(
    title="LCL, Table 6a: training loss",
    source=f"MMC4, {_SOURCE}",
    columns=_TABLE_6,
    measures=_MEASURES_6,
    rows={
        "Con. only": (46.4, 32.7, 23.8, 82.7),
        "Gen. only": (10.3, 5.4, 8.5, 17.8),
        "LCL": (48.5, 34.5, 24.4, 87.5),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    notes=_SCENES,
    trends=("Gen. only collapses; LCL is better than Con. only, most in captioning.",),
)

TABLE_6B = PaperTable(
    title="LCL, Table 6b: weight λ of the contrastive loss",
    source=f"MMC4, {_SOURCE}; 0 is 'Gen. only' of Table 6a",
    columns=_TABLE_6,
    measures=_MEASURES_6,
    rows={
        "0": (10.3, 5.4, 8.5, 17.8),
        "0.05": (48.3, 33.7, 24.3, 87.0),
        "0.1": (48.5, 34.5, 24.4, 87.5),
        "0.2": (47.6, 33.1, 24.2, 86.3),
        "0.5": (37.1, 23.2, 20.4, 66.7),
    },
    aliases=ALIASES,
    stand_ins=STAND_INS,
    stand_in_note=STAND_IN_NOTE,
    notes=(
        *_SCENES,
        "λ = 0.5 (37.1) lies below both 0.1 and 'Con. only' (46.4): likely an instability of that run, not a trend.",
    ),
    trends=("An inner optimum near 0.1, against 0 (Gen. only) and against the contrastive loss alone.",),
)
