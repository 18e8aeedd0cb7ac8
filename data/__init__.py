"""Records, tokenizers and text; the toy world; loaders of public datasets."""
