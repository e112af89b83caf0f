"""Released models behind the interface of `cornerstone.load`, each with its own tokenizer, text format and transform."""
