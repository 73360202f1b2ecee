"""A run of a network as one page that people can walk through."""
