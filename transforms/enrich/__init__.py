"""What is found out about a text before a model sees it: pure functions, one file each, and the Beam steps around them."""
