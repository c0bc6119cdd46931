"""Patched models on the Hub: what is saved and pushed, the model card, and how a push survives the network."""
