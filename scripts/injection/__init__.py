"""What scripts/faults and scripts/soak share: the gateway under test, its neighbours' load, and every kind of fault."""
