"""Results: comparisons of runs, pictures and videos."""
