"""Jobs other than training: features, recaptioning and packing with Ray Data, the built-in scenes and their image tower."""
