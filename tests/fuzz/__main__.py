"""Draw random nets and check every law on them.

    python -m fuzz --count 5000 --workers 2     # seeds 0 to 4999
    python -m fuzz --seed 1234 --show           # one net: its blocks, and what was found

A fault is printed with the smallest beginning of its net that still shows it. The exit status is 1
if there was any.
"""

from __future__ import annotations

import sys

from fuzz.campaign import main

if __name__ == "__main__":
    sys.exit(main())
