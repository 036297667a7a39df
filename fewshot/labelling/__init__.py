"""A page to label a folder: classes by name, a few examples by hand, everything else sorted by a few-shot method."""
