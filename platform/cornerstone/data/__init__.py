"""Records, shards, the plan and the stream: from source files to the batches of a step."""
