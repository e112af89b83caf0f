"""`scenes`: the built-in synthetic data set, with known images, captions and caption errors.

It is used by the demo, the tests and trend studies, needs no download, and every row is a function of (seed, set, index).
`world` defines the vocabulary and samples scenes, `draw` renders them, `facts` are statements that are true or false of a
scene, `texts` turns them into sentences, `captioners` choose facts and make errors at a known rate, `sets` builds the rows
of the training set and of each evaluation set, `write` writes shards, `tokenizer` trains a WordPiece vocabulary.
`documents` builds interleaved documents of short `statements`, in which the worth of each image for the text is known.
"""
