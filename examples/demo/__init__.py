"""The demo: a small world, a model trained on it, and the whole job from pairs to a trained policy."""
