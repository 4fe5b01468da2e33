"""The report of a judged run: one page for whoever decides, a few lines for the terminal."""
