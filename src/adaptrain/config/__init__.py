"""Configuration: the legal keys, and how `conf/`, a recipe and the command line become one run.

Nothing is imported here, so that `adaptrain ls` needs neither Hydra nor torch.
"""
