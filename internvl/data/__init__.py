"""Training data: from rows to the rows of a batch (report sections 3.1, 3.4, 4.1, 4.2).

schema      rows of both formats -> Sample
sources     where rows come from: JSON Lines, Parquet, `datasets`
mixture     which row of which dataset, how often, in which order
examples    Sample -> Example: tiles, ids, labels
render      turns -> segments -> ids and loss mask
augment     random JPEG
packing     which samples share a row
collate     packed samples -> tensors
stream      all of it for one reader of many, with integers as its state
skips       samples that cannot be used: counted, bounded
measure, validate, preview, pack_report     looking at data before training
commands    `internvl data ...`
"""
