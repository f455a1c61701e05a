"""State files as stores of other frameworks: one module for each, imported only by those who use it."""
