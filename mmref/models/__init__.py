"""The networks and what they share: variants, parameters, `create_model`."""
