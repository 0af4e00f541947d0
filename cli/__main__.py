"""`python -m energy_lens.cli`, where `elw` is not on the path."""

import sys

from energy_lens.cli.main import main

sys.exit(main())
