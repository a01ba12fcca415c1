"""Custom heads, each in a module that has the decoder's name in the decoder table."""
