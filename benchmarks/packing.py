"""Part `packing`: share of padding in packed sequences of real documents."""

from __future__ import annotations

from pathlib import Path

from benchmarks.reading import DATA, vocabulary
from benchmarks.report import table
from cornerstone.data.documents import PackingConfig
from cornerstone.data.importers import import_pairs
from cornerstone.data.records import Pair
from cornerstone.jobs.packing import write_packing


def packing(folder: Path, pairs: list[Pair]) -> None:
    """Padding of packed sequences against one document per sequence."""
    source, tokenizer = DATA / "openstax", vocabulary()
    import_pairs("mmc4", source / "docs_mmc4.jsonl", folder / "docs", images=str(source / "images"))
    rows = []
    for budget in (512, 2048):
        for alone in (False, True):
            config = PackingConfig(token_budget=budget, one_document=alone)
            packed = write_packing(str(folder / "docs"), str(folder / f"packed-{budget}-{alone}"), tokenizer, config)
            padding = packed.source["packed"]["padding"]
            way = "one document per sequence" if alone else "packed"
            rows.append([str(budget), way, f"{packed.rows:,}", f"{padding:.1%}"])
    table("OpenStax documents, 196 tokens per image", ["token budget", "way", "sequences", "padding"], rows)
