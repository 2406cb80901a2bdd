"""Parlance: from text to a language model you can talk to, on the machine in front of you."""
