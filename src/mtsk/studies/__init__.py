"""Studies: many trainings compared, strategy against strategy, on the same utterances."""
