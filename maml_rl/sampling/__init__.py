"""Sampling: environments of a family, rollouts of all tasks at once, advantages, and random streams."""
