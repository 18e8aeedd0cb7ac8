"""A town with known facts, what is asked about it, and the text and prompts made of both."""
