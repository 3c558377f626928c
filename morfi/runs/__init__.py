"""Runs of a store: how they begin and end, what they answer, what made them, and what is done with them."""
