"""What evaluate.py measures, and pictures of it."""
