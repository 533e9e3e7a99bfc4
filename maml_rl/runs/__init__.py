"""Runs: the run folder, checkpoints, TensorBoard events, and evaluations."""
