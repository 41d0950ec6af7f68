"""What is written after training: the model folder, its provenance and model card, and the upload to the Hub."""
