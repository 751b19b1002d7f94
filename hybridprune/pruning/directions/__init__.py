"""Directions of layers: decomposed, scored, cut, put together as factored layers and refitted."""
