"""Budgets: spaces of units with exact prices, and what is kept of them."""
