"""Training: teacher labels, data mixture, objectives, trainer."""
