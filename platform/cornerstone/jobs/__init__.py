"""Jobs over shards by Ray Data, other than training: features, new captions, packing, the built-in scenes and their tower."""
