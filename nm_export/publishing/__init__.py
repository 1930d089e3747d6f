"""What becomes of a calibrated model: a folder, a model card, a repository on the Hub."""
