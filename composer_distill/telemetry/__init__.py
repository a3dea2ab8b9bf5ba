"""What is told beside the loss."""
