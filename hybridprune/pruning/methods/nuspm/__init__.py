"""Shared masks, a budget of MACs and nuclear norms (Lee et al., WACV 2024)."""
