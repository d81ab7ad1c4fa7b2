"""The demonstration: a small vision transformer, its experts and their held-out data, which come with the package."""
