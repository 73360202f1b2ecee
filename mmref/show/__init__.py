"""Pictures of the inside of a network."""
