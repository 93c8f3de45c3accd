"""The fork-state cache: pages, the ledger of who holds them, and the index of cached prefixes. Knows no request."""
