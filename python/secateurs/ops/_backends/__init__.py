"""What the operations of one backend share."""
