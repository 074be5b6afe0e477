"""The allocation of a disk as an image: one look tells where its data lie.

Extents come in one after another and are added up in a fixed number of cells (:mod:`.bins`); at the end the cells
become shapes (:mod:`.drawing`), and the shapes a file (:mod:`.svg`, :mod:`.png`).  Nothing of this is imported by a run
that draws nothing.
"""
