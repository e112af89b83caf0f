"""Every method: shares of a batch on several workers against the whole on one, with different counts on each worker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shares import CASES, backward, found, together


@pytest.fixture(scope="module", params=[2, 3])
def folder(request, tmp_path_factory) -> Path:
    """What so many workers found, all methods in turn."""
    made = tmp_path_factory.mktemp("shares")
    together("gradients", made, request.param)
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", CASES)
def test_shares_give_the_gradients_of_the_whole(folder, kind):
    parts, gradients = found(folder, kind)
    whole_parts, whole = backward(CASES[kind], 0, 1)
    used, near = CASES[kind].used, CASES[kind].tolerance
    torch.testing.assert_close(torch.stack(parts), torch.stack(whole_parts), rtol=near / 10, atol=near / 10)
    for name, value in whole.items():
        torch.testing.assert_close(gradients[name], value, rtol=near, atol=near / 100, msg=name)
        if name in used:
            assert float(value.abs().max()) > 1e-6, name
        elif used == ("ALL",) and not name.endswith("key.bias"):
            assert float(value.abs().max()) > 1e-7, name
