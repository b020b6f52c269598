"""Tools that read a network and are not part of it: its cost, its receptive field."""
