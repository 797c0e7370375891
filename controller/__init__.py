"""The controller station: what is sampled next, what is trained next, and how strongly entropy is held."""
