"""Runnable examples; nothing in the packages imports them."""
