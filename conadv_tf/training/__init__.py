"""The trainer and what a run keeps on disk."""
