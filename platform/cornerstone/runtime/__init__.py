"""Where the code runs: the connection to Ray, the check of a placement, the home folder, access to the hub."""
