"""Data sets, transforms and loading. Nothing here imports jax: worker processes start fast and hold no device."""
