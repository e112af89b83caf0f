"""Where the code runs: connecting to Ray, checking a placement, the home folder, access to the hub."""
