"""`scenes`: a small drawn world whose pictures, captions and errors are all known.

The embedded data of the demo, the tests and the trend studies: no download, every row a function of (seed, set,
index). `world` says what there is and draws lots for a scene, `draw` paints it, `facts` are statements that are true or
false of it, `texts` puts them into words, `captioners` choose which to state and err at a known rate, `sets` assembles
the rows of the training set and of each evaluation set, `write` makes shards of them, `tokenizer` learns their words.
"""
