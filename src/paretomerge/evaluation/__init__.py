"""Measuring models: the one format of results, and the metrics."""
