"""FILIP's loss against the numbers derived from the paper, in chunks and in parts."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from cornerstone.objectives import filip as module
from cornerstone.objectives import filip_loss
from cornerstone.objectives.filip import image_to_text, text_to_image


@pytest.fixture(params=["case0", "case1", "case2"])
def case(request, test_data):
    path = test_data / "reference" / "filip.safetensors"
    if not path.exists():
        pytest.skip(f"no {path}")
    prefix = request.param + "."
    return {n.removeprefix(prefix): x for n, x in safetensors.torch.load_file(path).items() if n.startswith(prefix)}


def normalised(io):
    leaves = [io[name].double().requires_grad_() for name in ("patches", "tokens")]
    return leaves, [F.normalize(x, dim=-1) for x in leaves]


@pytest.mark.parametrize("cosines", [1, 200, 2**24])
def test_the_similarities_of_the_paper(case, cosines, monkeypatch):
    """Also where a few columns are compared at a time."""
    monkeypatch.setattr(module, "_COSINES", cosines)
    _, (patches, tokens) = normalised(case)
    torch.testing.assert_close(image_to_text(patches, tokens, case["mask"]), case["excluded.i2t"])
    torch.testing.assert_close(text_to_image(tokens, case["mask"], patches), case["excluded.t2i"])


@pytest.mark.parametrize(("chunk", "cosines"), [(None, 2**24), (1, 2**24), (2, 300)])
def test_value_and_gradients_of_the_paper(case, chunk, cosines, monkeypatch):
    monkeypatch.setattr(module, "_COSINES", cosines)
    leaves, features = normalised(case)
    log_scale = torch.tensor([1 / 0.07], dtype=torch.float64).log().requires_grad_()
    loss = filip_loss(*features, case["mask"], log_scale.exp(), chunk=chunk)
    torch.testing.assert_close(loss, case["excluded.loss"], rtol=1e-10, atol=1e-12)
    loss.backward()
    for leaf, name in zip([*leaves, log_scale], ("patches", "tokens", "log_scale"), strict=True):
        wanted = case[f"excluded.grad_{name}"]
        torch.testing.assert_close(leaf.grad, wanted.reshape(leaf.shape), rtol=1e-8, atol=1e-10)


class Largest(TorchDispatchMode):
    """The most numbers in one tensor."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [x for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, torch.Tensor)]
        self.numbers = max([self.numbers, *(x.untyped_storage().nbytes() // x.element_size() for x in tensors)])
        return found


def test_the_tensor_of_all_patches_and_tokens_never_exists(monkeypatch):
    """With 40 pairs, 10 patches and 8 tokens it has 128,000 numbers; what is compared at a time is bounded, backward too."""
    monkeypatch.setattr(module, "_COSINES", 4_000)
    monkeypatch.setattr(module, "_LARGEST", 2_000)
    patches, tokens = (F.normalize(torch.randn(40, n, 6), dim=-1).requires_grad_() for n in (10, 8))
    with Largest() as largest:
        filip_loss(patches, tokens, torch.ones(40, 8, dtype=torch.bool), 5.0).backward()
    assert largest.numbers <= 4_000


def test_masked_rows_take_no_part(case):
    leaves, (patches, tokens) = normalised(case)
    kept = torch.arange(len(patches)) != 1
    expected = filip_loss(patches[kept], tokens[kept], case["mask"][kept], 5.0)
    broken, mask = patches.clone(), case["mask"].clone()
    broken[1], mask[1] = float("nan"), False  # without any token
    loss = filip_loss(broken, tokens, mask, 5.0, valid_B=kept, chunk=2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)
    ids = torch.arange(len(patches))
    ids[2] = 0
    same = filip_loss(patches, tokens, case["mask"], 5.0, row_ids_B=ids)
    logits = [5 * table for table in (case["excluded.i2t"], case["excluded.t2i"])]
    for table in logits:
        table[0, 2] = table[2, 0] = -torch.inf
    own = torch.arange(len(patches))
    torch.testing.assert_close(same, sum(F.cross_entropy(table, own) for table in logits) / 2)
