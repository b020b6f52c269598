"""The papers' ideas to look at: notebooks, and the functions that they call."""
