"""The comparison program behind ``fastnorm bench``; cases.py says what is measured."""
