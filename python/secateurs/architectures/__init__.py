"""What a model is made of, as data, and where it can lose something."""
