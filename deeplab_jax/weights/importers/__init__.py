"""Other code bases: which network a state dict belongs to, and their names for our layers."""
