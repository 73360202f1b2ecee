"""A network as a graph of operations: traced from its text, rewritten by passes, lowered by the backends."""
