"""LightningDataModules: packed pretraining text and chat-templated tuning data."""
