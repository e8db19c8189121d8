"""Dialogues with a model: what is asked, what it is given, what it answers."""
