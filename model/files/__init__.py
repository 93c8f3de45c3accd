"""Files: read from strangers without harm, written whole or not at all."""
