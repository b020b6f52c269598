"""Decoders: maps to logits, or to what the classifier sees."""
