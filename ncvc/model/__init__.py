"""The network and what touches its tensors; torch, no Lightning and no Hydra."""
