"""What the verbs of the command line do: they compose the rooms, and print."""
