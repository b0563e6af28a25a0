"""Data sets. To add one: write `sdfp/data/<name>.py` with `load(settings: Data) -> Dataset`
and add its line to `DATASETS` in registry.py; see "Where to add" in docs/design.md.

A data set made of image files lists them (`images.Listing`) and calls `images.assemble`; one
that comes as arrays calls `images.assemble_arrays`. Both cut the splits, check the labels and
bring normalisation, so a loader only says which example has which label.

interface.py  what a data set is        plan.py    which examples are in which batch
images.py     listing -> Dataset        splits.py  stratified cuts and label budgets
layout.py     original layouts -> rows  tfds.py    prepared TFDS data sets -> rows
cache.py      decode once, keep on disk decode.py  one image file -> uint8 array
pixels.py     uint8 <-> model input     loading.py from host memory to the devices
fetch.py      downloads                 unpack.py  archives that are not trusted
tables.py     .csv and .tsv -> rows
"""
