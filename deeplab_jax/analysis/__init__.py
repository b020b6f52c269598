"""What reads a network and is part of none: its cost, its receptive field."""
