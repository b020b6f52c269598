"""Other code bases: the network of a state dict, and their names for our layers."""
