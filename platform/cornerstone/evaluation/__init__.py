"""Zero-shot evaluation: tasks, the sets that they judge, and the evaluator that runs a model over a stream of them."""
