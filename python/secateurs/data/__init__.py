"""Data: text, tasks and batches."""
