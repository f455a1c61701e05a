"""What `python -m persistedstate` runs where the wheel was installed; the single file runs itself."""

import sys

from persistedstate_tools.command_line import main

sys.exit(main())
