"""Long jobs on many machines."""
