"""ncvc: train, check and run a small Japanese medical language model (NCVC-slm-1) on your own machines."""
