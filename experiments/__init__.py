"""Scripts that `maml-rl experiment NAME` runs. They import each other by their own names."""
