import sys

from scr2mae.cli import main

sys.exit(main())
