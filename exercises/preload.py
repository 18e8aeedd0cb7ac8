"""What the server of worker.py imports before it forks: each process then starts at once."""
import torch

from exercises import course

torch.set_num_threads(1)
course.load()
for name in ("ppo", "sft", "reward", "sampler", "evals.town", "labels.simulated"):
    __import__(name)
