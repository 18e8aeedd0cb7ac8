"""Between the steps: completions to rank, and who ranks them."""
