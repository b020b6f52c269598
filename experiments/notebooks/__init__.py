"""Notebooks on the papers' ideas, and the functions that they call."""
