"""Whether a run fits a machine and how long it takes, said without the machine."""
