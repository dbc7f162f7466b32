"""Everything that needs TensorFlow: photographs, their degradation, and batches of both."""

import os

# TensorFlow's C++ side talks of its build otherwise; it reads this when it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
