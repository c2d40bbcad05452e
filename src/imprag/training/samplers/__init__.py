"""Batch samplers: which examples and passages a step trains on, by seed and step."""
