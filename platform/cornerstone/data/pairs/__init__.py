"""Image-text pairs: reading, text drawing, stored features, the batch."""
