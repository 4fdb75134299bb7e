"""`python -m dreamjax`."""

import sys

from dreamjax.run.cli import main

sys.exit(main())
