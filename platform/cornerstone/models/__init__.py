"""Towers and methods: plain PyTorch that knows nothing of Ray, MLflow or files of experiments."""

from cornerstone.models.torchvision_mend import declare_missing_operators

declare_missing_operators()
