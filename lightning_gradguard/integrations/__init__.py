"""The guard in loops that are not Lightning's; each module imports the library that it is for."""
