"""`python -m mmref`, for where the command is not on the path."""

from mmref.cli import main

raise SystemExit(main())
