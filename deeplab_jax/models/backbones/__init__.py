"""Backbones: images to features by name."""
