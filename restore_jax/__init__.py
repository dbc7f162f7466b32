"""Training, evaluation and use of networks that restore images and keep their defects."""
