"""Zero-shot evaluation: retrieval, classification, look-alike choice."""
