"""The interpreter's garbage collector, which searches for cycles of objects. Serving a request makes none."""

import gc

OBJECTS = 10_000
"""How many objects more than before there must be for a search of the new ones. Python's default is 700, less than one
burst of requests makes and uses: the searches would take a tenth of the time of both processes."""


def search_seldom() -> None:
    """Leave out all objects that there are from searches, and search seldom. To be called when the engine is loaded.

    What is loaded stays, and each search of it takes as long as many steps.
    """
    gc.freeze()
    gc.set_threshold(OBJECTS)
