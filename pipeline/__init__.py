"""What job this is: the command line, the settings, the graph, and the cases."""
