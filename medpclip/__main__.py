"""`python -m medpclip`, for launchers that start modules (torchrun -m, deepspeed --module)."""

import sys

from medpclip.cli import main

sys.exit(main())
