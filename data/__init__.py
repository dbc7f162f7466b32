"""Everything that needs TensorFlow: photographs, their degradation, and batches of both."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

# Only errors; before TensorFlow is first imported, which is below.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# What TensorFlow writes at every start: before its log levels count, and about processors
# without AVX-512 as if it were an error, of which nobody has to know.
_GREETINGS = (
    b"oneDNN custom operations are on",
    b"before absl::InitializeLog()",
    b"oneDNN supports DT_",
)


@contextlib.contextmanager
def _without_greetings() -> Iterator[None]:
    """Holds back TensorFlow's greetings; everything else goes to stderr after all."""
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
                if not any(greeting in line for greeting in _GREETINGS):
                    os.write(2, line)


with _without_greetings(), contextlib.suppress(ImportError):
    # The rendered images need no TensorFlow; whatever does need it says so when it is imported.
    import tensorflow as tf

    try:
        # JAX has the GPUs; said before the first operation, which is the next.
        tf.config.set_visible_devices([], "GPU")
        # Says once in a process what it has to say about the processor.
        tf.function(tf.transpose, autograph=False)(tf.zeros((2, 2), tf.uint8))
    except (RuntimeError, tf.errors.OpError):  # someone has used it before
        pass
