from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from cornerstone.models.method import Method
from cornerstone.recipes import Optimization
from cornerstone.training.schedule import build_optimizer, learning_rate

SET = Optimization(steps=100, learning_rate=2.0, warmup_steps=10)


def test_warmup_is_linear_and_reaches_the_peak():
    assert [learning_rate(step, SET) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])


def test_then_a_cosine_to_zero():
    assert learning_rate(10, SET) == pytest.approx(2.0)
    assert learning_rate(55, SET) == pytest.approx(1.0)  # half way
    assert learning_rate(10 + 30, SET) == pytest.approx(1 + math.cos(math.pi / 3))
    assert learning_rate(100, SET) == pytest.approx(0.0)
    after = [learning_rate(step, SET) for step in range(10, 101)]
    assert all(a > b for a, b in pairwise(after))
    assert after[-2] > 0  # the last step still learns


def test_without_warmup_the_first_step_has_the_peak():
    assert learning_rate(0, Optimization(steps=5, learning_rate=2.0, warmup_steps=0)) == 2.0


def test_warmup_may_take_every_step():
    all_warm = Optimization(steps=4, learning_rate=2.0, warmup_steps=4)
    assert [learning_rate(step, all_warm) for step in range(4)] == [0.5, 1.0, 1.5, 2.0]


class Plain(nn.Sequential):
    """Some layers with a method's own grouping of parameters."""

    parameter_groups = Method.parameter_groups


def test_vectors_and_the_temperature_do_not_decay():
    model = Plain(nn.Linear(3, 4), nn.LayerNorm(4), nn.Embedding(5, 4), nn.Linear(4, 2, bias=False))
    model.logit_scale = nn.Parameter(torch.ones(1))
    model[3].weight.requires_grad_(False)
    optimizer = build_optimizer(model, Optimization(weight_decay=0.3, betas=(0.8, 0.9), eps=1e-5, learning_rate=7.0))
    decayed, kept = optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)

    def ids(tensors):
        return {id(tensor) for tensor in tensors}

    assert ids(decayed["params"]) == ids([model[0].weight, model[2].weight])
    assert ids(kept["params"]) == ids([model[0].bias, model[1].weight, model[1].bias, model.logit_scale])
    assert (decayed["lr"], decayed["betas"], decayed["eps"]) == (7.0, (0.8, 0.9), 1e-5)


def test_a_sharded_parameter_counts_by_its_true_shape():
    """Under ZeRO-3 a parameter is empty outside its module; DeepSpeed keeps its shape beside it."""
    layer = nn.Linear(3, 4)
    model = Plain(layer)
    layer.weight.ds_shape, layer.bias.ds_shape = torch.Size([4, 3]), torch.Size([4])
    layer.weight.data, layer.bias.data = torch.empty(0), torch.empty(0)
    decayed, kept = build_optimizer(model, Optimization()).param_groups
    assert decayed["params"] == [layer.weight]
    assert kept["params"] == [layer.bias]
