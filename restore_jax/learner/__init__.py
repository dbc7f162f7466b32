"""What is trained: model, optimizer and discriminator, and their state."""
