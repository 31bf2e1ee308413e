"""Config to parts, room by room: the only code below `build.py` that reads a config.

Wiring only: nothing here computes. Everything a user can mend is said before anything
compiles.
"""
