"""Training an export with TRL instead of `trainers.run`."""
