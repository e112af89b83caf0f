"""Trained models on disk: saving, loading, encoding, and released checkpoints."""
