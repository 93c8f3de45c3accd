"""`python -m thoughtbubbles`, and `python FOLDER/thoughtbubbles` from anywhere."""

import sys
from pathlib import Path

if not __package__:  # run as a folder, in which Python would look for modules, instead of beside it
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from thoughtbubbles import main

if __name__ == "__main__":
    sys.exit(main())
