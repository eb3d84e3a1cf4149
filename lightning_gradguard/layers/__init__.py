"""The layers of a module: their names, their fan, the order in which they compute, how they are drawn."""
