"""Contexts: parts that look at the backbone's last map as a whole."""
