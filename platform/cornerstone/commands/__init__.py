"""The commands of `cornerstone`: the options of each and the function it calls. Heavy imports are made when a command runs."""
