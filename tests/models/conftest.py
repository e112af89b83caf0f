"""Before any test of a model imports timm or transformers: torchvision is repaired by `cornerstone.models`."""

import cornerstone.models  # noqa: F401
