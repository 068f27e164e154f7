"""`python -m medpclip.train.preflight`."""

import sys

from medpclip.train.preflight.command import main

sys.exit(main())
