"""``python -m aioivschat``: the command."""

import sys

from aioivschat.cli import main

sys.exit(main())
