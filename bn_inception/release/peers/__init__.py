"""The released networks of others: a folder for each format, and the table of formats.

A new format is a folder with a FORMAT (format.py) and a line here.
"""

from bn_inception.release.peers import caffe, mxnet, pytorch, tensorflow
from bn_inception.release.peers.format import Format

# Asked in this order. Caffe is last, since its files begin like many others.
FORMATS: tuple[Format, ...] = (pytorch.FORMAT, mxnet.FORMAT, tensorflow.FORMAT, caffe.FORMAT)
