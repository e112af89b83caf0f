"""Records of runs: a local journal first, MLflow from there."""
