"""What a run costs: FLOPs and what devices can do."""
