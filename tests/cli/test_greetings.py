"""That TensorFlow is quiet where nothing is wrong."""

import subprocess
import sys

SCRIPT = """
import os, sys, time
start = time.time()
import data
import tensorflow as tf
stack = tf.zeros((4, 5, 3), tf.uint8)
turned = tf.data.Dataset.from_tensors(stack).map(lambda x: tf.transpose(x, [1, 0, 2]))
turned.get_single_element()
tf.function(lambda x: tf.transpose(x, [1, 0, 2]))(stack)
assert not tf.config.get_visible_devices("GPU")
os.write(2, b"E0000 an error of another kind\\n")
"""


def test_the_line_about_processors_is_held_back_and_no_other():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False
    )
    assert done.stderr == "E0000 an error of another kind\n"
