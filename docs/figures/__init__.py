"""Scripts that draw the figures of the README and of docs/."""
