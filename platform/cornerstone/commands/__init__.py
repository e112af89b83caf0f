"""The commands of `cornerstone`: what each takes, and how it calls the packages. Heavy imports wait until a command runs."""
