"""The LightningModule, its callbacks and strategies."""
