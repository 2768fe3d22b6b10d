"""The training stages as LightningModules: wiring only."""
