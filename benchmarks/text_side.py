"""The text side of a LoTLIP step on CPUs: the split, trimmed and bucketed form against one dense mask over padded texts.

    python -m benchmarks.text_side                 the step: forward, loss, backward; BERT-base, 2 corners, limit 128
    python -m benchmarks.text_side loss            memory of the loss at a batch of 32,768, and its time against the dense form

The baseline does what the authors' public code does: raw and long texts stacked, all padded to the limit, corners
computed for both, a mask (texts, limit, limit), and matrices of all pairs in the loss. Both have the same weights, and must
give the same loss. Times are of the processor, summed over threads, and of the clock; ways take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.report import own_process, table
from cornerstone.models.corner_text import CornerBert, visible
from cornerstone.models.text_tower import build_text_tower
from cornerstone.objectives import lotlip_loss
from cornerstone.recipes import CornerText, Placement
from cornerstone.training.build import length_buckets

LIMIT, CORNERS, WIDTH = 128, 2, 768
RAW, LONG = (10, 25), (40, 100)
"""Tokens of a text, from and to, [CLS] and [SEP] among them: web captions, and three sentences of a captioner."""
SCALE = 1 / 0.07


def texts(count: int, lengths: tuple[int, int], vocabulary: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token ids (count, longest) and lengths (count,)."""
    generator = torch.Generator().manual_seed(seed)
    length_B = torch.randint(lengths[0], lengths[1] + 1, (count,), generator=generator)
    ids_BT = torch.randint(1, vocabulary, (count, int(length_B.max())), generator=generator)
    return ids_BT * (torch.arange(ids_BT.shape[1]) < length_B[:, None]), length_B


def ours(tower: CornerBert, image_BD: Tensor, raw: tuple[Tensor, Tensor], long: tuple[Tensor, Tensor]) -> Tensor:
    """The loss by the platform's tower and objective."""
    buckets = length_buckets(Placement(), torch.device("cpu"))
    raw_BD = tower(*raw, extra=False, buckets=buckets).pooled_BD
    long_BMD = tower(*long, buckets=buckets).all_BMD
    return torch.stack(list(lotlip_loss(image_BD, raw_BD, long_BMD, SCALE).values())).sum()


def stacked(tower: CornerBert, image_BD: Tensor, raw: tuple[Tensor, Tensor], long: tuple[Tensor, Tensor]) -> Tensor:
    """The same loss with raw and long texts stacked and padded to the limit, one dense mask, and all logits at once."""
    padded = [F.pad(ids_BT, (0, LIMIT - CORNERS - ids_BT.shape[1])) for ids_BT, _ in (raw, long)]
    ids_BT, length_B = torch.cat(padded), torch.cat([raw[1], long[1]])
    x_BSE = tower._embed(ids_BT, CORNERS)
    allowed_BSS = visible(length_B, CORNERS, ids_BT.shape[1])
    mask = torch.zeros(allowed_BSS.shape).masked_fill(~allowed_BSS, torch.finfo(torch.float32).min)[:, None]
    x_BSE = tower.bert.encoder(x_BSE, attention_mask=mask).last_hidden_state
    read_BME = torch.cat([x_BSE[:, CORNERS : CORNERS + 1], x_BSE[:, :CORNERS]], dim=1)
    feature_BMD = F.normalize(tower.project(torch.tanh(tower.bert.get_submodule("pooler.dense")(read_BME))), dim=-1)
    raw_BMD, long_BMD = feature_BMD.chunk(2)
    return dense(image_BD, [raw_BMD[:, 0], *long_BMD.unbind(1)])


def dense(image_BD: Tensor, texts_BD: Sequence[Tensor]) -> Tensor:
    """Both directions of each text feature from its matrix of all pairs."""
    own_B = torch.arange(len(image_BD))
    total = torch.zeros(())
    for text_BD in texts_BD:
        logits_BB = SCALE * image_BD @ text_BD.T
        total = total + 0.5 * (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B))
    return total


def timed(step: Callable[[], Tensor]) -> tuple[float, float, float]:
    """Processor seconds, seconds, and the loss of a forward and backward pass."""
    processor, clock = time.process_time(), time.perf_counter()
    loss = step()
    loss.backward()
    return time.process_time() - processor, time.perf_counter() - clock, loss.item()


def step(batch: int, rounds: int, layers: int) -> None:
    """The text side of a step, both ways in turns."""
    config = CornerText("", WIDTH, layers, 12, LIMIT, 0.0, corner_tokens=CORNERS)
    tower = build_text_tower(config, 30_522, WIDTH, seed=0).train()
    assert isinstance(tower, CornerBert)
    image_BD = F.normalize(torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)
    raw, long = texts(batch, RAW, 30_522, seed=2), texts(batch, LONG, 30_522, seed=3)
    ways = {"padded to the limit, dense mask": stacked, "trimmed, split, in buckets": ours}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first one warms up
        for name, way in ways.items():
            tower.zero_grad()
            found[name].append(timed(partial(way, tower, image_BD, raw, long)))
    losses = {name: times[0][2] for name, times in found.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-3, losses
    rows = []
    for name, times in found.items():
        middle = [statistics.median(one[place] for one in times[1:]) for place in (0, 1)]
        rows.append([name, *(f"{value:.2f}" for value in middle), f"{losses[name]:.5f}"])
    base, split = found.values()
    ratios = [[a[place] / b[place] for a, b in zip(base[1:], split[1:], strict=True)] for place in (0, 1)]
    rows.append(["ratio, median of pairs", *(f"{statistics.median(one):.2f}" for one in ratios), ""])
    title = f"{batch} pairs, BERT of {layers} layers and width {WIDTH}, {CORNERS} corners, limit {LIMIT}"
    table(title, ["way", "processor seconds", "seconds", "loss"], rows)


def loss() -> None:
    """Memory of the loss and its gradients at a large batch, and its time against the dense form at a smaller one."""
    rows = []
    for batch, way in ((32_768, "chunks"), (8_192, "chunks"), (8_192, "dense"), (8_192, "chunks"), (8_192, "dense")):
        one = json.loads(own_process("text_side", "one", "--batch", str(batch), "--way", way))
        rows.append(
            [f"{batch:,}", way, *(f"{one[name]:,.2f}" for name in ("gigabytes", "processor", "seconds", "loss"))]
        )
    header = ["batch", "way", "GB beyond the inputs", "processor seconds", "seconds", "loss"]
    table(f"The loss, value and gradients; {CORNERS} corners, width {WIDTH}, fp32", header, rows)


def one(batch: int, way: str) -> None:
    """One measurement, in a process of its own."""
    generator = torch.Generator().manual_seed(0)
    image_BD, raw_BD = (F.normalize(torch.randn(batch, WIDTH, generator=generator), dim=-1) for _ in range(2))
    long_BMD = F.normalize(torch.randn(batch, 1 + CORNERS, WIDTH, generator=generator), dim=-1)
    for given in (image_BD, raw_BD, long_BMD):
        given.requires_grad_()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def value() -> Tensor:
        if way == "dense":
            return dense(image_BD, [raw_BD, *long_BMD.unbind(1)])
        valid_B = torch.ones(batch, dtype=torch.bool)
        parts = lotlip_loss(
            image_BD, raw_BD, long_BMD, SCALE, row_ids_B=torch.arange(batch), raw_valid_B=valid_B, long_valid_B=valid_B
        )
        return torch.stack(list(parts.values())).sum()

    processor, seconds, found = timed(value)
    most = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9
    print(json.dumps({"gigabytes": most, "processor": processor, "seconds": seconds, "loss": found}))


def main() -> None:
    """The part that the command line names."""
    usual = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    usual.add_argument("part", nargs="?", default="step", choices=("step", "loss", "one"))
    usual.add_argument("--batch", type=int, default=48)
    usual.add_argument("--rounds", type=int, default=3)
    usual.add_argument("--layers", type=int, default=12)
    usual.add_argument("--way", default="chunks", choices=("chunks", "dense"))
    chosen = usual.parse_args()
    if chosen.part == "step":
        step(chosen.batch, chosen.rounds, chosen.layers)
    elif chosen.part == "loss":
        loss()
    else:
        one(chosen.batch, chosen.way)


if __name__ == "__main__":
    main()
