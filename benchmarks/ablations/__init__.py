"""Ablations: connectors and objectives with one part left out or replaced, trained and compared at equal steps."""
