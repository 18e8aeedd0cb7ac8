"""Property checks, one file for each lesson. Their oracles are loops over lists."""
