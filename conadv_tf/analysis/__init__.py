"""What is computed about a training, apart from training itself."""
