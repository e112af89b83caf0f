"""The built-in scenes: a synthetic data set whose image content, captions and caption errors are all known.

It is the data of the demo, the tests and the trend studies. It needs no download: every row is a function of (seed, set,
index). `world` defines the objects and draws random scenes, `draw` renders them, `facts` are statements that are true or
false of a scene, `texts` converts facts to sentences, `captioners` choose which facts to state and make errors at a known
rate, `sets` assembles the rows of the training set and of each evaluation set, `write` writes them as shards, and
`tokenizer` trains a WordPiece vocabulary on them.
"""
