"""Run folders, atomic files, seeds and provenance."""
