"""Builds: what each makes, of which stages, out of what. Flows run them; so can a plain loop (`job.run`).

One file a build, with its NAME, its Options and its job.
"""
