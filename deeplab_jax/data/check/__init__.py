"""Checks of a data set, before training spends any time on it."""
