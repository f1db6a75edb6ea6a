"""Lets `python -m hope_server` stand for `hope`."""

import sys

from hope_server.cli import main

sys.exit(main())
