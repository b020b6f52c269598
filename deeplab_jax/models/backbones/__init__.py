"""Backbones: from images to the features of every stage, each with its stride. `dilation` turns strides into rates.

A module `x_variants` beside `x` holds what only the weights of other code bases need.
"""
