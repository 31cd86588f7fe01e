"""What a trained network is worth, and how it is handed on."""
