"""Records, tokenizers, the toy world and its labelers, and loaders of public datasets."""
import startup  # noqa: F401  Ctrl-C is one line from here on: `python -m data.NAME`, too
