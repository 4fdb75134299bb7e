"""`python -m dreamjax`."""

import sys

from dreamjax.cli import main

sys.exit(main())
