"""Decoders: from maps to logits, or to the input of the classifier."""
