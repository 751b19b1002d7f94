"""Tests of the package, folder by folder as it is laid out."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""
