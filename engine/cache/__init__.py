"""The fork-state cache: pages, the ledger of sequences, and the index of cached prefixes. It knows no request."""
