"""Long-CLIP's stretch of CLIP's positions (Zhang et al. 2024, section 3.2): the first ones stay, the others are interpolated.

P old positions, Q new ones, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEPT, FACTOR = 20, 4


def stretched(table_PE: Tensor, *, half: bool = False) -> Tensor:
    """(Q, E), float32, Q = 20 + 4 (P − 20): 248 of CLIP's 77.

    Rows 0 to 19 stay; row 20 + 4i + j = (1 − j/4) old[20 + i] + (j/4) old[21 + i]; the last four are extrapolated beyond the
    last old row. `half` computes in fp16 as the authors' loader does.
    """
    table_PE = table_PE.half() if half else table_PE.float()
    rest = table_PE[KEPT:]
    share_F1 = (torch.arange(FACTOR, device=table_PE.device) / FACTOR).to(table_PE.dtype)[:, None]
    between = (1 - share_F1) * rest[:-1, None] + share_F1 * rest[1:, None]
    beyond = rest[-1] + share_F1 * (rest[-1] - rest[-2])
    return torch.cat([table_PE[:KEPT], between.flatten(0, 1), beyond]).float()
