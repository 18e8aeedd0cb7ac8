"""Between the steps: completions to rank, and labelers who rank them, simulated ones or people."""
