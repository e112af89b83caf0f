"""Jobs that write data, other than training: features, new captions, packing, the built-in scenes and their tower."""
