"""Between the steps: completions to rank, and simulated labelers that rank them."""
