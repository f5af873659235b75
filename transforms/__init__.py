"""How one step works: transforms over plain records. Knows no case and no runner."""
