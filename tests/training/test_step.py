from __future__ import annotations

import pytest
import torch

from cornerstone.training.step import _shared


def test_a_feature_has_rows_or_is_shared_by_all():
    """A vector of one number a row would lose all rows but the first micro-batch's."""
    assert not _shared(torch.zeros(4, 3))
    assert _shared(torch.zeros(1))
    with pytest.raises(ValueError, match=r"A feature has shape \(4,\)"):
        _shared(torch.zeros(4))
