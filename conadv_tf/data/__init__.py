"""Data: sources with random access, and the batches made from them."""
