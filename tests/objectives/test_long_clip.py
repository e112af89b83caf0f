"""Long-CLIP's loss and its principal components against the authors' numbers, and where torch's own gradient is not finite."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from cornerstone.errors import CornerstoneError
from cornerstone.objectives import contrastive_loss, long_clip_loss
from cornerstone.objectives.long_clip import reconstructed

WORKER = Path(__file__).with_name("long_clip_worker.py")
SPEC = importlib.util.spec_from_file_location("long_clip_worker", WORKER)
worker = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(worker)
some = worker.some
COMPONENTS = {"n64_d48_k32": 32, "n33_d40_k32": 32, "n24_d40_k32": 32, "n20_d12_k5": 5}
ONE = {"w1_n40_d36": 0, "w1_n12_d36": 0, "w2_n36_d36": 36, "w2_n10_d24": 10}
"""The group of images of each case: the rows of one rank."""


def reference(test_data, file, case) -> dict[str, torch.Tensor]:
    path = test_data / "reference" / f"{file}.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    with safe_open(path, "pt") as opened:
        assert case in [one["case"] for one in json.loads(opened.metadata()["cases"])]
        return {n.removeprefix(case + "."): opened.get_tensor(n) for n in opened.keys() if n.startswith(case + ".")}  # noqa: SIM118


@pytest.mark.parametrize("case", COMPONENTS)
@pytest.mark.parametrize(("dtype", "value", "gradient"), [(torch.float64, 1e-12, 1e-10), (torch.float32, 2e-6, 1e-3)])
def test_the_reconstruction_is_the_authors(test_data, case, dtype, value, gradient):
    io = reference(test_data, "longclip_pca", case)
    features = io["features"].to(dtype).requires_grad_()
    found = reconstructed(features, COMPONENTS[case])
    torch.testing.assert_close(found, io["output"].to(dtype), rtol=0, atol=value)
    (io["weight"].to(dtype) * found).sum().backward()
    torch.testing.assert_close(features.grad, io["grad"].to(dtype), rtol=0, atol=gradient)


def of_svd(x, k):
    """The authors' function: its gradient goes through the singular value decomposition."""
    mean = x.mean(0)
    right = torch.linalg.svd(x - mean, full_matrices=False)[2][:k].T
    return (x - mean) @ right @ right.T + mean


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (20, 20)])
def test_the_gradient_is_a_derivative(shape):
    """Of more rows than columns, of fewer, and where components are 0: gradcheck in float64."""
    x = F.normalize(torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.autograd.gradcheck(lambda x: reconstructed(x, 4), x.clone().requires_grad_())
    low = x[:, :5] @ x[:5]  # of rank 5
    assert torch.autograd.gradcheck(lambda x: reconstructed(x, 4), low.clone().requires_grad_())
    torch.testing.assert_close(reconstructed(x, 4), of_svd(x, 4))


def test_repeated_images_have_a_finite_gradient():
    """Where the decomposition of torch gives NaN; the derivative along a direction is the right one."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(64, 512, dtype=torch.float64, generator=generator), dim=-1)
    x[-24:] = x[0]
    weight = torch.randn(64, 512, dtype=torch.float64, generator=generator)
    step = 1e-6 * torch.randn(64, 512, dtype=torch.float64, generator=generator)
    for dtype in (torch.float64, torch.float32):
        leaf = x.to(dtype, copy=True).requires_grad_()
        (weight.to(dtype) * reconstructed(leaf, 32)).sum().backward()
        assert leaf.grad.isfinite().all()
        apart = [(weight * reconstructed(x + sign * step, 32)).sum() for sign in (1, -1)]
        torch.testing.assert_close((leaf.grad.double() * step).sum(), (apart[0] - apart[1]) / 2, rtol=1e-3, atol=1e-9)
    theirs = x.float().requires_grad_()
    (weight.float() * of_svd(theirs, 32)).sum().backward()
    assert not theirs.grad.isfinite().all()


@pytest.mark.parametrize("different", [1, 2, 20, 33])
def test_of_images_that_span_no_more_than_the_components_all_is_kept(different):
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(different, 40, generator=generator), dim=-1)[torch.arange(64) % different]
    x, weight = x.clone().requires_grad_(), torch.randn(64, 40, generator=generator)
    found = reconstructed(x, 32)
    torch.testing.assert_close(found, x, rtol=0, atol=2e-6)
    (weight * found).sum().backward()
    assert x.grad.isfinite().all()
    if different < 33:
        torch.testing.assert_close(x.grad, weight, rtol=0, atol=1e-4)


def test_equal_components_on_both_sides_of_the_cut_have_a_finite_gradient():
    x = torch.eye(64).requires_grad_()
    reconstructed(x, 32).square().sum().backward()
    assert x.grad.isfinite().all()


def normalised(io):
    leaves = {name: io[name].clone().requires_grad_() for name in ("image", "short", "long", "log_scale")}
    return leaves, [F.normalize(leaves[name], dim=-1) for name in ("image", "short", "long")]


@pytest.mark.parametrize("case", ONE)
@pytest.mark.parametrize("chunk", [None, 7])
def test_value_and_gradients_are_the_authors(test_data, case, chunk):
    """Two ranks' loss is that of two groups of a global batch."""
    io = reference(test_data, "longclip_loss", case)
    leaves, features = normalised(io)
    parts = long_clip_loss(*features, leaves["log_scale"].exp(), pca_group=ONE[case], chunk=chunk)
    torch.testing.assert_close(parts["raw"], io["short_loss"].mean(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(parts["long"], io["long_loss"].mean(), rtol=1e-9, atol=1e-10)
    sum(parts.values()).backward()
    for name, leaf in leaves.items():
        torch.testing.assert_close(leaf.grad, io[f"grad_{name}"], rtol=1e-8, atol=1e-10, msg=name)


def test_groups_are_of_the_usable_rows_in_their_order():
    image, raw, long, raw_valid, long_valid, ids = some()
    image[1] = float("nan")
    masks = {"row_ids_B": ids, "raw_valid_B": raw_valid, "long_valid_B": long_valid}
    parts = long_clip_loss(
        image, raw, long, 5.0, components=2, pca_group=4, label_smoothing=0.0, raw_weight=2.0, **masks
    )
    usable = [i for i in range(len(image)) if raw_valid[i] or long_valid[i]]
    coarse = torch.zeros_like(image)
    for places in (usable[:4], usable[4:8], usable[8:]):
        coarse[places] = of_svd(image[places], 2)
    expected = contrastive_loss(coarse, raw, 5.0, row_ids_B=ids, valid_B=raw_valid)
    torch.testing.assert_close(parts["raw"], 2 * expected)
    torch.testing.assert_close(parts["long"], contrastive_loss(image, long, 5.0, row_ids_B=ids, valid_B=long_valid))
    alone = long_clip_loss(image, raw, long, 5.0, raw_weight=0.0, **masks)
    assert set(alone) == {"long"}


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_give_the_gradients_of_the_whole(tmp_path, world):
    """Groups lie across the ranks' borders, and there are fewer groups than ranks, or more."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(WORKER), str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank), str(world)], env=environment) for rank in range(world)]
    assert [process.wait(timeout=120) for process in started] == [0] * world
    found = torch.load(tmp_path / "result.pt")
    for way in worker.WAYS:
        for value, expected in zip(found[way], worker.step(some(12), slice(0, 12), way), strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11, msg=str(way))


def test_smoothing_is_torchs_cross_entropy():
    image, text, *_ = some()
    logits = 7 * image @ text.T
    own = torch.arange(len(image))
    expected = sum(F.cross_entropy(x, own, label_smoothing=0.2) for x in (logits, logits.T)) / 2
    for chunk in (None, 3):
        torch.testing.assert_close(contrastive_loss(image, text, 7.0, label_smoothing=0.2, chunk=chunk), expected)
    keep = [0, 2, 3, 5]
    valid = torch.tensor([i in keep for i in range(len(image))])
    own = torch.arange(len(keep))
    cut = logits[keep][:, keep]
    expected = sum(F.cross_entropy(x, own, label_smoothing=0.2) for x in (cut, cut.T)) / 2
    torch.testing.assert_close(contrastive_loss(image, text, 7.0, label_smoothing=0.2, valid_B=valid), expected)


def test_mistakes_are_named():
    with pytest.raises(CornerstoneError, match="0 principal components of groups of 4 images"):
        long_clip_loss(*some()[:3], 1.0, components=0, pca_group=4)


@pytest.mark.parametrize("chunk", [None, 3])
def test_smoothing_gives_the_gradients_of_the_dense_form_beside_masked_rows_and_equal_ids(chunk):
    generator = torch.Generator().manual_seed(3)
    image, text = (F.normalize(torch.randn(8, 5, generator=generator, dtype=torch.float64), dim=-1) for _ in range(2))
    valid, ids = torch.tensor([1, 1, 0, 1, 1, 1, 0, 1], dtype=torch.bool), torch.tensor([0, 1, 2, 1, 4, 5, 6, 7])
    scale = torch.tensor([7.0], dtype=torch.float64)
    given = [x.clone().requires_grad_() for x in (image, text, scale)]
    dense = [x.clone().requires_grad_() for x in (image, text, scale)]
    contrastive_loss(*given, label_smoothing=0.2, valid_B=valid, row_ids_B=ids, chunk=chunk).backward()

    logits, losses = dense[2] * dense[0] @ dense[1].T, []
    for row in valid.nonzero()[:, 0].tolist():
        kept = valid & ((ids != ids[row]) | (torch.arange(8) == row))
        own = kept[:row].sum()[None]
        losses += [F.cross_entropy(x[row][kept][None], own, label_smoothing=0.2) for x in (logits, logits.T)]
    (torch.stack(losses).sum() / 2 / valid.sum()).backward()
    for mine, theirs in zip(given, dense, strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-10, atol=1e-12)
