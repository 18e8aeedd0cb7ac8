"""The paper's experiments, rerun in the town, where the truth is known (`make figures`)."""
