"""The model, optimizer and discriminator of a training, and their state."""
