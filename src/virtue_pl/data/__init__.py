"""Data, from a tar to a batch.

The way of a training sample, which is an order to read the sub-packages in:

1. `shards`: a folder of tars and its manifest; `records.read_record` turns a tar entry into a `Record`.
2. `formats`: what a row of SCaR or MMEB means: regions, instructions, rankings.
3. `datamodules`: what YAML names under `data:`; a dataset's `to_sample` turns a row and its images into a `Sample`.
4. `streaming.pipeline`: shards, records and samples as seeded generators; hard negatives drawn, bad input skipped.
5. `streaming.loader`: samples to batches by the model's collator, in data workers, and out of them.
6. `streaming.partition`: the same for evaluation, every row once over all ranks.

Beside that way: `conversion` writes published or own datasets as shards; `doctor` checks them; `eval_sets` reads the
sets of an evaluation, from shards or official files; `scenes` composes small datasets, whose images `download` fetches.
`io` holds what all of them do with files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
