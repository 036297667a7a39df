"""What researchers hold, one file per outside format, turned into the image store (pretrain/store.py).

A data set of conf/data names its builder, ``build(folder, path=..., ...)``; where it comes in several formats, what
lies at ``path`` decides. The splits that are public lists stand beside the builders as CSV files.
"""
