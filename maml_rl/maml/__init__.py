"""MAML and its relatives: inner losses and steps, outer objective and optimisers."""
