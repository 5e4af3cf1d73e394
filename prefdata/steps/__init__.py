"""Cleaning steps: each takes records or rows and says of every one whether it is kept, or why not."""
