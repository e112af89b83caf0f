"""Conversations about an image, or about none: how they become token ids, their source, and their batch."""
