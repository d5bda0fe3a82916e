"""The training loop, what it runs on, and a whole run from config to folder."""
