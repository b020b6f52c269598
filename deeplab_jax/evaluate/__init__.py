"""Inference, evaluation and pictures of results."""
