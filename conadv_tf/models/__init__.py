"""Plain Keras models, which know nothing of adversaries."""
