"""Evaluation: metrics, the runner, its report, and the comparison of runs."""
