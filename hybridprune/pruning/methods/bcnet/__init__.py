"""Bilaterally coupled network (BCNet, Su et al. 2021): widths by a search in a network that was trained for it."""
