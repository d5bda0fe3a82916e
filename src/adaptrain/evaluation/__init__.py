"""Predictions, metrics, trivial baselines, and the evaluation of a saved run folder."""
