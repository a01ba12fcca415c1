"""Data sets: what they are, how they are read, checked, augmented and batched."""
