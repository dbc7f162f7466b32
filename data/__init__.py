"""Everything that needs TensorFlow: sources of photographs, degradation and batching."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

# Logs errors only; must be set before TensorFlow is first imported (below).
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Lines that TensorFlow prints at every start although they are of no use to anyone: those it
# logs before its log level takes effect, and a notice about processors without AVX-512 that it
# logs as an error.
_STARTUP_LINES = (
    b"oneDNN custom operations are on",
    b"before absl::InitializeLog()",
    b"oneDNN supports DT_",
)


@contextlib.contextmanager
def _without_startup_lines() -> Iterator[None]:
    """Filters TensorFlow's start-up lines out of stderr; everything else is passed on."""
    try:
        kept = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not any(known in line for known in _STARTUP_LINES):
                    os.write(2, line)


with _without_startup_lines(), contextlib.suppress(ImportError):
    # Rendered images do not need TensorFlow; modules that do will fail on their own import.
    import tensorflow as tf

    try:
        # The GPUs are left to JAX; must precede the first operation (the next one).
        tf.config.set_visible_devices([], "GPU")
        # Triggers the notice about the processor, which is logged once per process.
        tf.function(tf.transpose, autograph=False)(tf.zeros((2, 2), tf.uint8))
    except (RuntimeError, tf.errors.OpError):  # TensorFlow is already initialised
        pass
