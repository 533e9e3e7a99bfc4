"""`python -m maml_rl`, the same as `maml-rl`."""

from .cli import main

main()
