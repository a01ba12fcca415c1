"""Decoders of our own, each in one file."""
