"""The paper's comparison as a graph of resumable steps: ``imprag reproduce``.

A study is a folder with ``study.yaml`` and recipes: `small` runs on two CPU cores, `paper` is the
paper's own size. ``paper.yaml`` holds the paper's figures.
"""
