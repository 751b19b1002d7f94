"""Groups of a layer's filters that lose inputs of their own, and become branches."""
