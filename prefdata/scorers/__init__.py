"""Sources of reward: each says how good an answer is, in a unit of its own."""
