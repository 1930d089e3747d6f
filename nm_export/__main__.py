"""`python -m nm_export`: the command, for launchers that start modules (`accelerate launch -m nm_export RECIPE`)."""

from nm_export.cli import main

main()
