"""Contexts: what sees the backbone's last map as a whole."""
